"""Tables in LaTeX that pdflatex compiles with booktabs, whatever the labels.

Text becomes ASCII: base LaTeX's symbols and accents, and U+… for a character that it has not.
"""

import itertools
import math
import re
import textwrap
import unicodedata

# A bracket or a star would be read as an argument of the command before it (\\, \toprule).
ASCII = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "[": "{[}",
    "]": "{]}", "*": "{*}", "<": "$<$", ">": "$>$", "|": "$|$",
}  # fmt: skip
TEXT = {
    "\u00a0": "~", "–": "--", "—": "---", "‐": "-", "‑": "-", "…": r"\ldots{}", "‘": "`", "’": "'",
    "“": "``", "”": "''", "„": "''", "«": "$\\ll$", "»": "$\\gg$", "¶": r"\P{}", "§": r"\S{}",
    "©": r"\copyright{}", "®": "(R)", "™": "(TM)", "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}",
    "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}",
    "ı": r"\i{}", "ȷ": r"\j{}", "¿": "?`", "¡": "!`", "£": r"\pounds{}", "⁄": "/",
}  # fmt: skip
MATH = {
    "±": "pm", "∓": "mp", "×": "times", "÷": "div", "·": "cdot", "⋅": "cdot", "∗": "ast",
    "⋆": "star", "★": "star", "∘": "circ", "•": "bullet", "●": "bullet", "⊕": "oplus",
    "⊖": "ominus", "⊗": "otimes", "⊙": "odot", "≤": "leq", "⩽": "leq", "≥": "geq", "⩾": "geq",
    "≠": "neq", "≈": "approx", "≃": "simeq", "∼": "sim", "≅": "cong", "≡": "equiv", "≪": "ll",
    "≫": "gg", "∝": "propto", "∈": "in", "∉": "notin", "∋": "ni", "⊂": "subset", "⊃": "supset",
    "⊆": "subseteq", "⊇": "supseteq", "∪": "cup", "∩": "cap", "∧": "wedge", "∨": "vee",
    "¬": "neg", "∀": "forall", "∃": "exists", "∅": "emptyset", "∞": "infty", "∂": "partial",
    "∇": "nabla", "∑": "sum", "∏": "prod", "∫": "int", "√": "surd", "✓": "surd", "✔": "surd",
    "✗": "times", "✘": "times", "∥": "parallel", "‖": "|", "⊥": "perp", "∠": "angle",
    "⟨": "langle", "⟩": "rangle", "⌊": "lfloor", "⌋": "rfloor", "⌈": "lceil", "⌉": "rceil",
    "←": "leftarrow", "→": "rightarrow", "↑": "uparrow", "↓": "downarrow", "↔": "leftrightarrow",
    "⇐": "Leftarrow", "⇒": "Rightarrow", "⇑": "Uparrow", "⇓": "Downarrow", "⇔": "Leftrightarrow",
    "↦": "mapsto", "↗": "nearrow", "↘": "searrow", "↙": "swarrow", "↖": "nwarrow",
    "†": "dagger", "‡": "ddagger", "ℓ": "ell", "ℜ": "Re", "ℑ": "Im", "ℵ": "aleph",
    "△": "triangle", "▽": "bigtriangledown", "◇": "diamond", "♯": "sharp",
    "♭": "flat", "♮": "natural", "♠": "spadesuit", "♣": "clubsuit", "♥": "heartsuit",
    "♦": "diamondsuit", "⊤": "top", "⊢": "vdash", "⊣": "dashv", "⊨": "models", "≺": "prec",
    "≻": "succ", "≍": "asymp", "≐": "doteq", "∖": "setminus", "≀": "wr", "⋄": "diamond",
    "⋯": "cdots", "⋮": "vdots", "⋱": "ddots", "′": "prime",
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ϵ": "epsilon",
    "ζ": "zeta", "η": "eta", "θ": "theta", "ϑ": "vartheta", "ι": "iota", "κ": "kappa",
    "λ": "lambda", "μ": "mu", "µ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma",
    "ς": "varsigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "ϕ": "phi", "χ": "chi", "ψ": "psi",
    "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "∆": "Delta", "Θ": "Theta", "Λ": "Lambda",
    "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Υ": "Upsilon", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
# Greek letters that look like Latin ones have no command of their own.
LATIN = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧο", "ABEZHIKMNOPTXo", strict=True))
# Combining characters → accents of every font encoding.
ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u0304": "=",
    "\u0307": ".", "\u030c": "v", "\u0306": "u", "\u030b": "H", "\u030a": "r", "\u0327": "c",
    "\u0323": "d", "\u0331": "b",
}  # fmt: skip


def tex(text: str) -> str:
    """A text as LaTeX, in ASCII; white space and control characters become spaces or nothing."""
    parts = [_composed(part) for part in re.findall(r".[\u0300-\u036f]*", _plain(text))]
    return "".join(parts)


# A line of an article (345 pt) in \\small, in characters; a column takes two more than its text.
LINE, BETWEEN, WRAPPED = 70, 2, 16
COLUMN = 46  # characters of a line in a column of a two-column page (240 pt)
# The lines of \\small that fit on a page (550 pt) beside a caption, and a note's characters a line.
PAGE, NOTE = 40, 90


def table_float(
    name: str,
    caption: str,
    columns: list[tuple[str, str]],
    rows: list[list[str]],
    bold: set[tuple[int, int]],
    notes: list[str],
) -> str:
    """A table as floats: caption, label `tab:<name>`, tabulars with booktabs' rules, notes as text.

    Columns of one group stand under a common header. Groups that do not fit into a line go into
    a further tabular below, which repeats the first column; what does not fit on a page, into a
    further float of the same number. Needs only \\usepackage{booktabs}. A table that does not fit
    into a column of a two-column page spans both (table*, which on other pages is table).

    columns: (group, header) of each column, of which the first, the rows' names, has no group.
    bold: (row, column) of the cells that are printed so.
    """
    blocks = _blocks(columns, rows)
    wide = max(sum(_width(columns, rows, j) for j in block) for block in blocks) > COLUMN
    pieces = [(len(rows) + 5, False, _tabular(columns, rows, bold, block)) for block in blocks]
    pieces += [(0.85 * math.ceil(len(note) / NOTE), True, tex(note)) for note in notes]
    floats: list[list[tuple[bool, str]]] = [[]]
    used = 0.0
    for lines, is_note, text in pieces:
        if floats[-1] and used + lines > PAGE:
            floats.append([])
            used = 0.0
        floats[-1].append((is_note, text))
        used += lines
    label = rf"\label{{tab:{re.sub('[^A-Za-z0-9:-]', '-', name)}}}"
    captions = [rf"\caption{{{tex(caption)}}}" + label]
    captions += [rf"\addtocounter{{table}}{{-1}}\caption{{{tex(caption)} (continued)}}"] * (
        len(floats) - 1
    )
    kind = "table*" if wide else "table"
    begin = rf"\begin{{{kind}}}" + "\n" + r"\centering\small\setlength{\tabcolsep}{4pt}"
    begin += r"\setlength{\belowcaptionskip}{6pt}"
    return "".join(
        "\n".join([begin, heading, *_joined(texts), rf"\end{{{kind}}}"]) + "\n"
        for heading, texts in zip(captions, floats, strict=True)
    )


def _joined(texts: list[tuple[bool, str]]) -> list[str]:
    """The parts of a float: tabulars, and what follows them as one block of notes."""
    tabulars = [text for is_note, text in texts if not is_note]
    notes = [text for is_note, text in texts if is_note]
    parts = ["\n\n\\medskip\n".join(tabulars)] if tabulars else []
    if notes:
        parts += ["\n\\medskip\n"] if tabulars else []
        body = "\\par\n".join(notes)
        parts.append(
            rf"\begin{{minipage}}{{\linewidth}}\footnotesize\raggedright {body}\par\end{{minipage}}"
        )
    return parts


def _width(columns: list[tuple[str, str]], rows: list[list[str]], j: int) -> int:
    """Characters that column j takes."""
    header = max(map(len, textwrap.wrap(columns[j][1], WRAPPED)), default=0)
    return max([header, *(len(row[j]) for row in rows)]) + BETWEEN


def _blocks(columns: list[tuple[str, str]], rows: list[list[str]]) -> list[list[int]]:
    """The columns of each tabular; a group that is too wide by itself is cut where it must be."""
    first = _width(columns, rows, 0)
    blocks: list[list[int]] = [[]]
    used = first
    for _, group in itertools.groupby(range(1, len(columns)), lambda j: columns[j][0]):
        group = list(group)
        widths = [_width(columns, rows, j) for j in group]
        if blocks[-1] and used + sum(widths) > LINE:
            blocks.append([])
            used = first
        for j, width in zip(group, widths, strict=True):
            if blocks[-1] and used + width > LINE:
                blocks.append([])
                used = first
            blocks[-1].append(j)
            used += width
    return [[0, *block] for block in blocks]


def _tabular(
    columns: list[tuple[str, str]],
    rows: list[list[str]],
    bold: set[tuple[int, int]],
    chosen: list[int],
) -> str:
    groups, rules, place = [""], [], 2
    for label, group in itertools.groupby(chosen[1:], lambda j: columns[j][0]):
        count = len(list(group))
        room = sum(_width(columns, rows, j) for j in chosen[place - 1 : place - 1 + count])
        groups.append(rf"\multicolumn{{{count}}}{{c}}{{{_stacked(label, max(room, WRAPPED))}}}")
        rules.append(rf"\cmidrule(lr){{{place}-{place + count - 1}}}")
        place += count
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(chosen) - 1)}}}", r"\toprule"]
    if any(columns[j][0] for j in chosen):
        lines += [" & ".join(groups) + r" \\", "".join(rules)]
    lines += [" & ".join(_stacked(columns[j][1], WRAPPED) for j in chosen) + r" \\", r"\midrule"]
    for i, row in enumerate(rows):
        cells = [rf"\textbf{{{tex(row[j])}}}" if (i, j) in bold else tex(row[j]) for j in chosen]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _stacked(text: str, width: int) -> str:
    """A header in as many lines as it needs."""
    lines = textwrap.wrap(text, width)
    if len(lines) < 2:
        return tex(text)
    return r"\shortstack{" + r" \\ ".join(map(tex, lines)) + "}"


def _plain(text: str) -> str:
    """A text in one line, without what prints nothing."""
    kept = (
        " " if character.isspace() and character != "\u00a0" else character for character in text
    )
    return "".join(c for c in kept if unicodedata.category(c) not in ("Cc", "Cf"))


def _composed(part: str) -> str:
    """A character with the combining ones after it."""
    first, marks = part[0], part[1:]
    written = _character(first)
    if written is None:
        decomposed = unicodedata.normalize("NFKD", first)
        if decomposed == first:
            written = f"U+{ord(first):04X}"
        else:
            return tex(decomposed + marks)
    for mark in marks if first.isalpha() and first.isascii() else ():
        if mark in ACCENTS:
            written = rf"\{ACCENTS[mark]}{{{written}}}"
    return written


def _character(character: str) -> str | None:
    """One character as LaTeX; None if only its decomposition may be known."""
    if character in ASCII:
        return ASCII[character]
    if character.isascii():
        return character
    if character in TEXT or character in LATIN:
        return TEXT.get(character) or LATIN[character]
    if character in MATH:
        return rf"$\{MATH[character]}$"
    kind = unicodedata.decomposition(character).partition(" ")[0]
    raised = {"<super>": "^", "<sub>": "_"}.get(kind)
    if raised:
        inner = tex(unicodedata.normalize("NFKD", character))
        return rf"${raised}{{\mbox{{\scriptsize {inner}}}}}$"
    return {"°": r"$^\circ$"}.get(character)
