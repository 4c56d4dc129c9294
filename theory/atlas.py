"""The atlas: every derivation, symbol and registered scheme as one LaTeX document.

It needs no package that a plain TeX system lacks (amsmath, amssymb, array, booktabs, geometry, graphicx, hyperref,
longtable; lmodern where it is there) and takes whatever topics are registered. A statement that stays wider than a line
after `theory.latex` has split it is scaled down by the document's own `\\fit`, which says so in TeX's log: "Atlas:
scaled".
"""

import re
from collections.abc import Iterable, Mapping

import sympy as sp

from theory import notation as s
from theory.activation import ACTIVATIONS
from theory.attention_scheme import ATTENTIONS, AttentionScheme
from theory.block import BLOCKS, Block
from theory.derivation import Check, derive, topics
from theory.embedding import EMBEDDINGS
from theory.initialization import INITIALIZATIONS
from theory.latex import display, formula, words
from theory.parameter_count import num_parameters
from theory.presets import PRESETS

_PREAMBLE = r"""\documentclass[10pt,a4paper]{article}
\usepackage[utf8]{inputenc}
\IfFileExists{lmodern.sty}{\usepackage[T1]{fontenc}\usepackage{lmodern}}{}
\usepackage{amsmath,amssymb,array,booktabs,graphicx,longtable}
\usepackage[margin=25mm]{geometry}
\usepackage[colorlinks,linkcolor=blue,urlcolor=blue]{hyperref}
\setlength{\emergencystretch}{3em}
\setlength{\LTleft}{0pt}
\setlength{\parindent}{0pt}
\setlength{\parskip}{4pt plus 2pt}
\renewcommand{\arraystretch}{1.15}
\setcounter{tocdepth}{2}
\allowdisplaybreaks
\newsavebox{\statementbox}
\newcommand{\fit}[1]{\sbox{\statementbox}{$\displaystyle #1$}%
\ifdim\wd\statementbox>\linewidth\typeout{Atlas: scaled}\resizebox{\linewidth}{!}{\usebox{\statementbox}}%
\else\usebox{\statementbox}\fi}
\newcommand{\known}[1]{{\footnotesize\itshape #1\par}}
"""
_TITLE = r"""\begin{document}
\title{An atlas of gradient propagation in Transformers}
\author{spikeless, \texttt{python -m theory atlas}}
\date{}
\maketitle
"""
_INTRODUCTION = (
    "Every derivation that is registered, step by step, with how each step is known: proven symbolically, proven by "
    "instances at concrete sizes, supported by evaluation at random points to 50 digits, given (a definition or an "
    "assumption), or cited (a theorem of others, used without proof). Then the schemes that the derivations and the "
    "prediction are about, with the very formulas that weights are sampled from. Tags: [P] read in the paper, [C] in "
    "the authors' code or configuration, [S] or [secondary] in a digest, [M] from memory.",
    "Written from the code that proves and predicts; nothing in it is typed by hand.",
)
_PAPER = re.compile(r"(?:(?<![\w-])([A-Z][^;:()\[\]]*?),? )?arXiv (\d{4}\.\d{4,5})")
_OWN = "this derivation"


def atlas(checks: Mapping[str, Check]) -> str:
    """The document. checks: outcomes by topic, of all topics that it shall have."""
    titles = {name: topics()[name] for name in checks}
    tally: dict[str, int] = {}
    for check in checks.values():
        for outcome in check.outcomes:
            kind = outcome.step.kind if outcome.holds else "failed"
            tally[kind] = tally.get(kind, 0) + 1
    count = f"{len(checks)} derivations, {sum(tally.values())} steps: " + ", ".join(
        f"{n} {k}" for k, n in tally.items()
    )
    return "\n".join(
        [
            _PREAMBLE + _TITLE,
            *(words(paragraph) + "\n" for paragraph in (*_INTRODUCTION, count + ".")),
            r"\tableofcontents",
            r"\clearpage",
            *_notation(),
            *(line for name, check in checks.items() for line in _topic(name, titles, check)),
            *_schemes(),
            *_sources(checks, titles),
            r"\end{document}",
            "",
        ]
    )


def _topic(name: str, titles: Mapping[str, str], check: Check) -> list[str]:
    derivation = derive(name)
    lines = [rf"\section{{{words(derivation.title)}}}\label{{topic:{name}}}", *map(words, derivation.remarks), ""]
    lines += [rf"\known{{Topic \texttt{{{words(name)}}}.}}", r"\begin{enumerate}"]
    for outcome in check.outcomes:
        step = outcome.step
        how = words(outcome.how) if outcome.holds else rf"\textbf{{{words(outcome.how)}}}"
        source = "" if step.source == _OWN else f"; {_source(step.source, titles)}"
        lines += [
            rf"\item {words(step.reason)}",
            rf"\[\fit{{{display(step.statement)}}}\]",
            rf"\known{{({how}{source})}}",
        ]
    return [*lines, r"\end{enumerate}"]


def _source(source: str, titles: Mapping[str, str]) -> str:
    """A source, the name of another derivation as a link to it."""
    if source in titles:
        return rf"\hyperref[topic:{source}]{{{words(titles[source])}}}"
    return words(source)


def _notation() -> list[str]:
    rows = [(_math(entry.symbol), words(entry.meaning), words(entry.unit)) for entry in s.TABLE.values()]
    return [r"\section{Notation}", *_table("lp{95mm}p{36mm}", ("symbol", "meaning", "unit"), rows)]


def _schemes() -> list[str]:
    lines = [r"\section{Registered schemes}", r"\subsection{Residual arrangements (blocks)}"]
    lines.append(
        r"$\nu$ is a norm, $f$ a sub-layer; $f_\nu$ has a norm before its last matrix. "
        r"$N$ blocks, $n$ the number of one. A last norm stands before the head where the third column says so."
    )
    rows: list[tuple[str, ...]] = [
        (_name(b.name), _math(_arrangement(b)), "yes" if b.final_norm else "no", words(_learned(b) + b.source))
        for b in BLOCKS.values()
    ]
    lines += _table("lp{59mm}lp{49mm}", ("name", "addition", "last norm", "source"), rows)
    lines.append(r"\subsection{Initialisations}")
    lines.append("Standard deviation of the entries by kind of matrix. Biases start at 0, norm scales at 1.")
    rows = []
    for scheme in INITIALIZATIONS.values():
        rows.append((_name(scheme.name), "all others", _math(scheme.default), words(scheme.source)))
        rules: dict[sp.Expr, list[str]] = {}
        for kind, rule in scheme.std.items():
            rules.setdefault(rule, []).append(kind)
        rows += [("", _names(kinds), _math(rule), "") for rule, kinds in rules.items()]
        cut: dict[float, list[str]] = {}
        for kind, cutoff in scheme.truncation.items():
            cut.setdefault(cutoff, []).append(kind)
        rows += [("", _names(kinds), "", f"cut off at {cutoff:g} nominal stds") for cutoff, kinds in cut.items()]
    lines += _table("lp{40mm}p{40mm}p{46mm}", ("name", "matrices", "std", "source"), rows)
    lines.append(r"\subsection{Embedding methods}")
    rows = [
        (
            _name(e.name),
            _math(e.multiplier),
            "yes" if e.layer_norm else "no",
            _math(e.gradient_share),
            "of the initialisation" if e.table_std is None else _math(e.table_std),
            words(e.source),
        )
        for e in EMBEDDINGS.values()
    ]
    lines += _table(
        "lllp{17mm}p{24mm}p{50mm}", ("name", "multiplier", "norm", "gradient share", "std of the table", "source"), rows
    )
    lines.append(r"\subsection{Attention}")
    rows = [(_name(a.name), _math(_attention(a)), words(_normed(a)), words(a.source)) for a in ATTENTIONS.values()]
    lines += _table("lp{57mm}p{31mm}p{35mm}", ("name", "weights of the values", "norms, matrices", "source"), rows)
    lines.append(r"\subsection{Activations}")
    rows = [
        (_name(a.name), _math(_gated(a.function, a.gated)), words(a.source)) for a in ACTIVATIONS.values()
    ]  # fmt: skip
    lines += _table("lp{80mm}p{50mm}", ("name", "hidden units", "source"), rows)
    return [*lines, *_presets()]


def _presets() -> list[str]:
    lines = [r"\subsection{Presets}", r"{\scriptsize\setlength{\tabcolsep}{1.9pt}"]
    head = ("name", "$N$", "$d$", "$h$", "$h_{kv}$", r"$d_{\mathrm{ff}}$", "$V$", "$T$", "block", "initialisation",
            "embedding", "activation", "positions", "$10^9$")  # fmt: skip
    rows = []
    for recipe in PRESETS.values():
        a = recipe.arch
        sizes = (a.num_layers, a.d_model, a.num_heads, a.kv_heads, a.ff_width, a.vocab_size, a.seq_len)
        schemes = (a.block, a.initialization, a.embedding, a.activation, a.positions)
        rows.append(
            (words(recipe.name), *map(str, sizes), *(words(str(scheme)) for scheme in schemes),
             f"{num_parameters(a) / 1e9:.3g}")
        )  # fmt: skip
    lines += [*_table("lrrrrrrrlllllr", head, rows), "}"]
    lines.append(
        r"The last column counts the parameters. What is known of each, and what differs from what was trained:"
    )
    shared: dict[tuple[str, str], list[str]] = {}
    for recipe in PRESETS.values():
        shared.setdefault((recipe.source, recipe.note), []).append(recipe.name)
    lines.append(r"\begin{itemize}")
    for (source, note), names in shared.items():
        lines.append(rf"\item {_names(names)}: {words(source)}{'. ' + words(note) if note else ''}.")
    return [*lines, r"\end{itemize}"]


def _sources(checks: Mapping[str, Check], titles: Mapping[str, str]) -> list[str]:
    """Every paper with where it is used, then the sources that are no arXiv paper."""
    cited: list[tuple[str, str]] = []
    for name, check in checks.items():
        place = rf"\ref{{topic:{name}}}"
        cited += [(o.step.source, place) for o in check.outcomes if o.step.source not in (_OWN, *titles)]
    registries: tuple[Mapping[str, object], ...] = (
        BLOCKS, INITIALIZATIONS, EMBEDDINGS, ATTENTIONS, ACTIVATIONS, PRESETS
    )  # fmt: skip
    for registry in registries:
        cited += [(str(getattr(scheme, "source", "")), _name(name)) for name, scheme in registry.items()]
    papers: dict[str, tuple[list[str], list[str]]] = {}
    others: dict[str, list[str]] = {}
    for source, place in cited:
        found = _PAPER.findall(source)
        for who, number in found:
            names, places = papers.setdefault(number, ([], []))
            names.append(who)
            places.append(place)
        if not found:
            others.setdefault(source, []).append(place)
    lines = [r"\section{Sources}", "Numbers are sections, names are registered schemes.", r"\begin{itemize}"]
    for number, (names, places) in sorted(papers.items()):
        who = min((name for name in names if name), key=lambda name: (-names.count(name), len(name)), default="")
        link = rf"\href{{https://arxiv.org/abs/{number}}}{{arXiv {number}}}"
        lines.append(rf"\item {words(who) + ', ' if who else ''}{link}. Used in {_distinct(places)}.")
    for source, places in sorted(others.items()):
        lines.append(rf"\item {words(source)}. Used in {_distinct(places)}.")
    return [*lines, r"\end{itemize}"]


def _arrangement(arrangement: Block) -> sp.Basic | str:
    def normed(there: bool, inner: str) -> str:
        return rf"\nu({inner})" if there else inner

    inner = normed(arrangement.pre_norm, "x")
    inner = inner if arrangement.input == 1 else f"{formula(arrangement.input)}\\, {inner}"
    mark = r"_\nu" if arrangement.inner_norm else ""
    parts = ("\\mathrm{Attn}", "\\mathrm{FFN}") if arrangement.parallel else ("f",)
    added = " + ".join(normed(arrangement.output_norm, f"{part}{mark}({inner})") for part in parts)
    branch = "" if arrangement.branch == 1 else rf"{formula(arrangement.branch)}\, "
    shortcut = "" if arrangement.shortcut == 1 else rf"{formula(arrangement.shortcut)}\, "
    return "x' = " + normed(arrangement.post_norm, f"{shortcut}x + {branch}{added}")


def _learned(arrangement: Block) -> str:
    return {None: "", "scalar": "factor learned, one number; ", "vector": "factor learned, one a coordinate; "}[
        arrangement.learned
    ]


def _attention(scheme: AttentionScheme) -> str:
    logits = rf"q k^T/\sqrt{{{formula(s.d_head)}}}"
    if scheme.temperature != 1:
        logits = rf"{formula(scheme.temperature)}\, {logits}"
    if scheme.cap is not None:
        logits = rf"{scheme.cap:g} \tanh({logits} / {scheme.cap:g})"
    weights = rf"\operatorname{{softmax}}({logits})"
    if scheme.clip is None:
        return weights
    low, high = scheme.clip
    return rf"\operatorname{{clip}}({high - low:g} \, {weights} {low:+g}, 0, 1)"


def _normed(scheme: AttentionScheme) -> str:
    said = []
    if scheme.normed:
        said.append(f"norms on every head's {', '.join(scheme.normed)}")
    if scheme.qkv_norm:
        said.append("none before the projections")
    if scheme.output_norm:
        said.append("on the output of both sub-layers")
    if scheme.spectral:
        said.append("every matrix acts as gamma W / ‖W‖")
    return "; ".join(said)


def _gated(function: sp.Expr, gated: bool) -> str:
    return (
        rf"F(W_g z) \odot W_1 z,\; F(u) = {formula(function)}" if gated else rf"F(W_1 z),\; F(u) = {formula(function)}"
    )


def _table(columns: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A table that may run over pages, its head on each."""
    ragged = re.sub(r"p\{", r">{\\raggedright\\arraybackslash}p{", columns)
    title = rf"\toprule {' & '.join(head)} \\ \midrule"
    body = [" & ".join(row) + r" \\" for row in rows]
    return [
        rf"\begin{{longtable}}{{@{{}}{ragged}@{{}}}}",
        title,
        r"\endhead",
        *body,
        r"\bottomrule",
        r"\end{longtable}",
    ]


def _math(value: sp.Basic | str) -> str:
    return rf"$\displaystyle {value if isinstance(value, str) else formula(value)}$"


def _name(name: str) -> str:
    return rf"\texttt{{{words(name)}}}"


def _names(names: Iterable[str]) -> str:
    return ", ".join(words(name) for name in names)


def _distinct(places: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(places))
