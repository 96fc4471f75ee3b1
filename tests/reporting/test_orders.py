"""What README and docs/results.md say of orders is what the published tables say.

    python tests/reporting/test_orders.py

prints the table and the sentence for today's published tables.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "results/published/mini/tables"
NOTE = re.compile(
    r"^- (?P<column>[^\n]+): Kendall τ between our order and the paper's is (?P<tau>\S+?); of "
    r"(?P<pairs>\d+) pairs of neighbours in the paper's order, (?P<same>\d+) have the same order "
    r"here, (?P<reverse>\d+) the reverse, and (?P<noise>\d+) differ",
    flags=re.M,
)


def orders() -> list[dict[str, str]]:
    return [
        {"table": path.stem} | match.groupdict()
        for path in sorted(TABLES.glob("*.md"))
        for match in NOTE.finditer(path.read_text(encoding="utf-8"))
    ]


def table() -> str:
    lines = ["| table | column | τ | same | reverse | within noise |", "|:--|:--|--:|--:|--:|--:|"]
    for each in orders():
        lines.append(
            f"| [{each['table']}](tables/{each['table']}.md) | {each['column']} | {each['tau']} | "
            f"{each['same']} | {each['reverse']} | {each['noise']} |"
        )
    return "\n".join(lines)


def sentence() -> str:
    pairs, same, reverse, noise = (
        sum(int(each[key]) for each in orders()) for key in ("pairs", "same", "reverse", "noise")
    )
    return (
        f"of {pairs} pairs of neighbours in the papers' orders, {same} come out the same way "
        f"beyond seed noise, {reverse} the other way, and {noise} within it"
    )


def test_every_order_is_told_and_none_twice():
    results = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert table() in results
    assert not re.search(r"τ (is )?[+-]\d", results.replace(table(), ""))
    assert len(orders()) > 20


def test_the_sum_of_all_orders_is_in_the_readme():
    for page in ("README.md", "docs/results.md"):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        assert sentence() in text, page
    assert not re.search(r"τ (is )?[+-]\d", (ROOT / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    print(table(), sentence(), sep="\n\n")
