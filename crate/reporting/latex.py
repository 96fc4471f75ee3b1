"""Tables in LaTeX: a booktabs tabular that pdflatex compiles, whatever the labels.

Text becomes ASCII: base LaTeX's symbols and accents, and U+… for a character that it has not.
"""

import re
import unicodedata

import pandas as pd

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


def tabular(headers: list[str], rows: list[list[str]], bold: set[tuple[int, int]]) -> str:
    """A tabular with booktabs' rules, the first column to the left.

    bold: (row, column) of the cells that are printed so.
    """
    frame = pd.DataFrame([[tex(text) for text in row] for row in rows])
    marks = pd.DataFrame("", index=frame.index, columns=frame.columns)
    for i, j in bold:
        marks.iloc[i, j] = "textbf:--rwrap;"
    styler = frame.style.hide(axis="index").apply(lambda _: marks, axis=None)
    styler.format_index(lambda column: tex(headers[column]), axis="columns")
    return styler.to_latex(hrules=True, column_format="l" + "r" * (len(headers) - 1))


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
