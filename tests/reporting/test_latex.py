"""Any label in LaTeX: what is written, and that pdflatex compiles it with booktabs."""

import random
import re
import shutil
import unicodedata

import pytest
from suite import compiled

from crate.reporting.latex import MATH, table_float, tex

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


NAMED = [("", "Model"), ("", "[x]")]


def test_what_begins_a_row_is_no_argument_of_the_row_before():
    body = table_float("t", "c", NAMED, [["[a]", "1"], ["*b", "2"]], {(1, 1)}, [])
    assert not re.search(r"(\\\\|rule)\s*[\[*]", body)
    assert r"\textbf{2}" in body


def test_caption_label_groups_and_notes():
    columns = [("", "Model"), ("top-1 (%) ↑", "ours"), ("top-1 (%) ↑", "paper"), ("size", "ours")]
    text = table_float(
        "a_b", "A title.", columns, [["m", "1", "2", "3"]], {(0, 2)}, ["Not comparable.", "α"]
    )
    assert text.splitlines() == [
        r"\begin{table}",
        r"\centering\small\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{6pt}",
        r"\caption{A title.}\label{tab:a-b}",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r" & \multicolumn{2}{c}{top-1 (\%) $\uparrow$} & \multicolumn{1}{c}{size} \\",
        r"\cmidrule(lr){2-3}\cmidrule(lr){4-4}",
        r"Model & ours & paper & ours \\",
        r"\midrule",
        r"m & 1 & \textbf{2} & 3 \\",
        r"\bottomrule",
        r"\end{tabular}",
        "",
        r"\medskip",
        "",
        r"\begin{minipage}{\linewidth}\footnotesize\raggedright Not comparable.\par",
        r"$\alpha$\par\end{minipage}",
        r"\end{table}",
    ]


def test_a_wide_table_goes_on_below_and_a_long_one_on_the_next_page():
    columns = [
        ("", "Model"),
        *((f"group {k}", part) for k in range(6) for part in ("ours", "paper")),
    ]
    row = ["a model", *(["12.3 ± 0.4", "12.0"] * 6)]
    wide = table_float("t", "c", columns, [row], set(), [])
    assert wide.count(r"\begin{table*}") == 1
    assert wide.count(r"\begin{tabular}") > 1
    assert wide.count("Model & ") == wide.count(r"\begin{tabular}")  # the names are repeated
    assert [wide.count(f"group {k}") for k in range(6)] == [1] * 6
    long = table_float("t", "c", columns, [row] * 20, set(), ["a note"])
    assert long.count(r"\begin{table*}") > 1
    assert long.count(r"\label") == 1
    assert long.count(r"\addtocounter{table}{-1}") == long.count(r"\begin{table*}") - 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
def test_pdflatex_compiles_every_label(tmp_path):
    known = [chr(code) for code in range(0x20, 0x2C00) if unicodedata.category(chr(code)) != "Cn"]
    labels = [*LABELS, *("".join(known[k : k + 40]) for k in range(0, len(known), 40))]
    rows = [[label, label[:40], "1"] for label in labels]
    pages = [
        table_float(
            "t",
            label,
            [("", label), (label, "[b]"), (label, "*")],
            rows[k : k + 20],
            {(0, 0), (1, 2)},
            [label],
        )
        for k, label in zip(range(0, len(rows), 20), LABELS * 50, strict=False)
    ]
    assert "Output written" in compiled(tmp_path, *pages)
