"""Names of a run's models that are put together from others: also checked before they are used."""


def round_suffix(number: int) -> str:
    """Of the merge and the members of a round before the last, which counts from 1.

    >>> "fisher" + round_suffix(1)
    'fisher-round-1'
    """
    return f"-round-{number}"


def fine_tuned_name(rival: str) -> str:
    """A rival's merge, fine-tuned.

    >>> fine_tuned_name("topk-10")
    'topk-10-fine-tuned'
    """
    return f"{rival}-fine-tuned"


def market_member_name(member: str, market: str) -> str:
    """A member in one of the markets.

    >>> market_member_name("next_item", "no")
    'next_item-no'
    """
    return f"{member}-{market}"
