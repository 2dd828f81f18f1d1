"""Names of a run's models that are made of other names: checked for duplicates before they are used."""


def round_suffix(number: int) -> str:
    """What tells the merge and the members of an early round, counted from 1, from those of the last.

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
