"""Any label in LaTeX: what is written, and that pdflatex compiles it with booktabs."""

import random
import re
import shutil
import subprocess
import unicodedata

import pytest

from crate.reporting.latex import MATH, tabular, tex
from crate.reporting.tables import RenderedTable, latex

LABELS = [
    "[ours] CRATE",
    "* best, [a]*[b]",
    "≥ 5, β → 0, ∞",
    "τ ≤ 0.5 ± 1 ‖W‖ ∥ ⟨x, y⟩",
    "naïve Müller, Erdős, Łódź, ångström, ąę, ﬁ",
    "50 % of $x_1^2$ & #3 {a} ~ \\ | < >",
    "m² × 10⁻³, H₂O, ½, ℓ₁, °C",
    "日本語 🙂 \u202e\u200b",
    "two\nlines\tand\r\na \\\\ break % comment",
    "\\input{x} \\end{tabular} $$",
    '`quoted\' "text" ?` !` -- --- ,,',
    "",
    " ",
]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("[a]", "{[}a{]}"),
        ("*", "{*}"),
        ("≥, β, →", r"$\geq$, $\beta$, $\rightarrow$"),
        ("a_b & c%", r"a\_b \& c\%"),
        ("\\", r"\textbackslash{}"),
        ("é ç ő", r"\'{e} \c{c} \H{o}"),
        ("e\u0301", r"\'{e}"),
        ("x²", r"x$^{\mbox{\scriptsize 2}}$"),
        ("α²", r"$\alpha$$^{\mbox{\scriptsize 2}}$"),
        ("½", "1/2"),
        ("a\nb\tc\u2028d", "a b c d"),
        ("a\u200bb\x00c", "abc"),
        ("字", "U+5B57"),
        ("🙂", "U+1F642"),
        ("76.5 ± 0.2 †", r"76.5 $\pm$ 0.2 $\dagger$"),
    ],
)
def test_a_text_as_latex(text, written):
    assert tex(text) == written


# Commands of LaTeX itself, without a package, that a text may become.
COMMANDS = {
    "textbackslash", "textasciitilde", "textasciicircum", "ldots", "P", "S", "copyright", "ss",
    "ae", "AE", "oe", "OE", "o", "O", "l", "L", "i", "j", "pounds", "mbox", "scriptsize", "circ",
    "v", "u", "H", "r", "c", "d", "b", *MATH.values(),
}  # fmt: skip


def test_any_character_is_ascii_of_known_commands_in_pairs():
    every = [chr(code) for code in range(0x3000)]
    every += [chr(code) for code in random.Random(0).sample(range(0x3000, 0x110000), 5_000)]
    for character in every:
        written = tex(f"a{character}b")
        assert written.isascii(), character
        assert written.isprintable(), character
        bare = re.sub(r"\\[\\&%$#_{}'`^~=.\"|]", "", written)
        assert set(re.findall(r"\\([A-Za-z]+|.)", bare)) <= COMMANDS, character
        assert bare.count("{") == bare.count("}"), character
        assert bare.count("$") % 2 == 0, character
        assert not set(bare) & set("&%#"), character


def test_what_begins_a_row_is_no_argument_of_the_row_before():
    body = tabular(["[m]", "x"], [["[a]", "1"], ["*b", "2"]], {(1, 1)})
    assert not re.search(r"(\\\\|rule)\s*[\[*]", body)
    assert r"\textbf{2}" in body


def test_a_caption_of_several_lines_stays_a_comment():
    table = RenderedTable(
        headers=["a", "b"],
        rows=[["c", "d"]],
        bold=set(),
        caption=["one\ntwo", ""],
        notes=["three\r\n\\four"],
        columns=[],
        orders={},
    )
    lines = latex(table).split("\n")
    assert lines[:2] == ["% one two", "% three \\four"]
    assert lines[2].startswith("\\begin{tabular}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
def test_pdflatex_compiles_every_label(tmp_path):
    known = [chr(code) for code in range(0x20, 0x2C00) if unicodedata.category(chr(code)) != "Cn"]
    labels = [*LABELS, *("".join(known[k : k + 40]) for k in range(0, len(known), 40))]
    rows = [[label, label[:40], "1"] for label in labels]
    pages = [
        tabular([label, "[b]", "*"], rows[k : k + 20], {(0, 0), (1, 2)})
        for k, label in zip(range(0, len(rows), 20), LABELS * 50, strict=False)
    ]
    source = "\n\\newpage\n".join(pages)
    (tmp_path / "a.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
        f"{source}\n\\end{{document}}\n"
    )
    words = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "a.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    wrong = [line for line in done.stdout.splitlines() if line.startswith("!")]
    assert (done.returncode, wrong) == (0, [])
