"""Markets get the data that are theirs, or are refused by name."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stages.contexts import MakeContext

from raymerge.data.sequences import read_partition
from raymerge.errors import InputError
from raymerge.stages.inputs import partitions_of
from raymerge.stages.markets import divide
from raymerge.stages.prepare import prepare

pytestmark = pytest.mark.usefixtures("capacity")


def test_markets_of_a_column_are_named_and_divided_by_it(make_context: MakeContext, log: Path, tmp_path: Path) -> None:
    rows = pq.read_table(log)
    shops = pa.array(["New York" if user % 3 else "Rome" for user in rows["user"].to_pylist()])
    pq.write_table(rows.append_column("shop", shops), tmp_path / "shops.parquet")
    changes = ["prepare.market=shop", "after_merge=null", "members={next_item: {name: next_item}}"]
    context = make_context("out", *changes, 'markets={by: column, names: ["Rome", "New York"]}')
    assert list(context.config.all_members) == ["next_item-Rome", "next_item-New-York"]
    whole = prepare(context, [str(tmp_path / "shops.parquet")])
    parts_of_data = divide(context, whole)
    for name, rest in (("next_item-Rome", [0]), ("next_item-New-York", [1, 2])):
        histories = [read_partition(url) for url in partitions_of(parts_of_data.members[name])]
        users = [user for part in histories for user in part.users.to_pylist()]
        assert users and {user % 3 for user in users} == set(rest), "users were given to shops by their ids"
    other = make_context("out", *changes, 'markets={by: column, names: ["Rome", "Paris"]}')
    with pytest.raises(InputError, match="the log has the markets New York, Rome, but markets.names lists Rome, Paris"):
        divide(other, whole)
    with pytest.raises(
        InputError, match="is the data of one market, which cannot be divided again: --set markets=null"
    ):
        divide(context, parts_of_data.members["next_item-Rome"])


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ({7}, r"no user of market-new has 2 training items besides the held-out ones \(5 interactions\): leave"),
        ({8, 9}, "market-old has no validation item for any of its 5 users: leave the market out"),
    ],
)
def test_a_market_with_too_little_to_train_or_validate_on_is_named(
    make_context: MakeContext, tmp_path: Path, new: set[int], expected: str
) -> None:
    rows = [(user, item, "new" if item in new else "old") for user in range(5) for item in range(10)]
    text = "user,item,timestamp,shop\n" + "".join(f"{user},{item},{item},{shop}\n" for user, item, shop in rows)
    (tmp_path / "log.csv").write_text(text)
    changes = ["prepare.market=shop", "after_merge=null", "markets={by: column, names: [old, new]}"]
    context = make_context("out", *changes)
    with pytest.raises(InputError, match=expected):
        divide(context, prepare(context, [str(tmp_path / "log.csv")]))
