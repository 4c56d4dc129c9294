"""A scheme under test, in whatever form its author has it, made into one: parameters from a key and an architecture.

Forms: a name or an `Initialization` (symbolic: what is proven is what is drawn), an `Embedding` or a `Block`; a
callable of JAX's initializer form `(key, shape, dtype)`, for every kind of matrix or one per kind; a `Model` of the
user's own. A function of the architecture, or of nothing, stands for what it returns; small architectures are among
those it is called with.
"""

import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import models
from models.initialization import assemble
from theory import Architecture
from theory.block import BLOCKS, Block
from theory.embedding import EMBEDDINGS, Embedding
from theory.initialization import INITIALIZATIONS, MATRIX_KINDS, Initialization, initialization

DISTRIBUTIONS = ("normal", "truncated_normal", "uniform", "orthogonal")
Initializer = Callable[..., Any]
_REGISTERED: dict[str, Mapping[Any, Any]] = {
    "block": BLOCKS, "embedding": EMBEDDINGS, "initialization": INITIALIZATIONS,
}  # fmt: skip


class SchemeError(ValueError):
    """A scheme's own code raised, which is the cause, or it has no form that is known, or drew what does not fit."""


@contextmanager
def blamed(name: str, arch: Architecture) -> Iterator[None]:
    """What the code of the scheme of that name raises at that architecture becomes a SchemeError of one line."""
    try:
        yield
    except SchemeError as error:
        raise SchemeError(str(error)) from error.__cause__  # without the notes that JAX and others add
    except Exception as error:
        first, *_ = [*str(error).strip().splitlines(), ""]
        raise SchemeError(f"scheme {name} raised {type(error).__name__}: {first}; at {described(arch)}") from error


def described(arch: Architecture, decided: Collection[str] = ("initialization",)) -> str:
    """An architecture as Python, without the fields at their defaults and those that a scheme decides."""
    own, shown = own_fields(arch, decided), []
    for each in fields(arch):
        value = getattr(arch, each.name)
        if value != each.default and each.name not in decided:
            shown.append(f"{each.name}={each.name if each.name in own else repr(getattr(value, 'name', value))}")
    return f"Architecture({', '.join(shown)})"


def own_fields(arch: Architecture, decided: Collection[str]) -> list[str]:
    """Fields that hold an object which is registered under no name, without those that a scheme decides."""
    return [field for field in _REGISTERED if field not in decided and not _registered(field, getattr(arch, field))]


def _registered(field: str, value: Any) -> bool:
    """Whether a name stands for it; a bare number does for itself."""
    name = getattr(value, "name", None)
    return name is None or _REGISTERED[field].get(name) == value


@dataclass(frozen=True)
class Model:
    """A user's own model.

    init(key, arch): its parameters, a pytree of arrays; numbers among them are no weights. loss(params, tokens, arch):
    a scalar, mean cross-entropy in nats per predicted token of int[batch, seq_len + 1]. Both may leave `arch` out; then
    hold its fields, so that tokens and declared rule fit. A loss with a parameter `place` is given that function, and
    calls x = place(x) on the residual stream: on what enters the first block, and after every addition.
    matrices(params): weights by kind (`theory.initialization.MATRIX_KINDS` or names of one's own), each [layers,
    fan_in, fan_out] or [rows, columns]; None: every leaf of two or three axes that is not constant, by its path. Where
    init gives a `models.Transformer`, loss and matrices are known.
    """

    init: Callable[..., Any]
    loss: Callable[..., Any] | None = None
    matrices: Callable[[Any], Mapping[str, Any]] | None = None


@dataclass(frozen=True, eq=False)
class Scheme:
    """What the properties take.

    declared: the rule that its matrices are held to, None: none; declared_as: as its author wrote it. distribution:
    that of the entries, one of DISTRIBUTIONS; None: unknown, but no heavier-tailed than a Gaussian. fields: of
    `Architecture` that the scheme itself decides. reference: Python for it; "scheme" for an object without a name to
    load it by, "rule" for such a rule in declared_as. symbolic: the rule is what is drawn, so that what is proven of it
    holds for all sizes. initializers: by kind, of an architecture, where it has JAX's form. ours: whether its
    parameters are `models.Transformer`'s. marks_places: whether the loss of a model of one's own takes `place`, one
    more argument. named: whether matrices go by names that somebody gave them, not by their paths in a tree.
    """

    name: str
    init: Callable[[Any, Architecture], Any]
    loss: Callable[..., Any] | None
    matrices: Callable[[Any], dict[str, Any]]
    declared: Initialization | None
    distribution: str | None
    declared_as: str = ""
    reference: str = "scheme"
    fields: Mapping[str, Any] = field(default_factory=dict)
    symbolic: bool = False
    initializers: Callable[[Architecture], Mapping[str, Initializer]] | None = None
    ours: bool = True
    marks_places: bool = False
    named: bool = True

    def arch(self, arch: Architecture) -> Architecture:
        """The architecture with what the scheme decides, and the declared rule for the theory to reason with."""
        decided = dict(self.fields) if self.declared is None else dict(self.fields) | {"initialization": self.declared}
        return replace(arch, **decided)


def as_scheme(
    given: object, declared: str | Initialization | None = None, distribution: str | None = None, name: str = ""
) -> Scheme:
    """The scheme behind any of the forms; a string names a registered initialisation or, "module:attribute", an object.

    declared: the rule that a callable or a model is held to. An initializer is drawn from once. Raises ValueError for
    what is none of the forms, for an unknown name, and for a rule beside a symbolic scheme, which is its own, or beside
    a Scheme, which has it; SchemeError, which is one too, for what the scheme itself raises, and for what it draws
    where that does not fit.
    """
    if isinstance(given, Scheme):
        if declared is not None or distribution is not None:
            what = "distribution" if declared is None else "declared"
            raise ValueError(f"{what}: {given.name} is made already; give it to as_scheme")
        return given
    reference = _reference(given, "scheme")
    if distribution is not None and distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution: unknown value {distribution!r}; choose one of {', '.join(DISTRIBUTIONS)}")
    if isinstance(given, str):
        name = name or given
        given = _imported(given) if ":" in given else initialization(given)
    name = name or str(getattr(given, "name", getattr(given, "__name__", type(given).__name__)))
    if isinstance(given, Initialization | Embedding | Block):
        return replace(_symbolic(given, name, declared, distribution), reference=reference)
    rule = None if declared is None else _rule(declared)
    written = "" if declared is None else _reference(declared, "rule")
    form, resolve = _form(given, name)
    if form == "model":
        return replace(_own_model(resolve, name, rule, distribution), declared_as=written, reference=reference)
    if form == "symbolic":
        return replace(_symbolic(resolve(_ANY), name, declared, distribution), reference=reference)

    def by_kind(arch: Architecture) -> Mapping[str, Initializer]:
        return _per_kind(resolve(arch), name)

    init = partial(_assembled, by_kind, name)
    try:
        with blamed(name, _ANY):
            jax.eval_shape(lambda key: init(key, _ANY), jax.random.key(0))
    except SchemeError as error:
        raise SchemeError(f"{error}{_as_called(given)}") from error.__cause__
    return Scheme(
        name, init, _our_loss, _our_matrices, rule, distribution, written, reference, initializers=by_kind
    )  # fmt: skip


# has every kind of matrix
_ANY = Architecture(
    num_layers=2, d_model=8, num_heads=2, vocab_size=5, seq_len=4, positions="learned", activation="swiglu"
)


def _as_called(given: object) -> str:
    """What to write where a function that makes initializers was taken for one, or for a function of arch."""
    needed = _required(given) if callable(given) else []
    if not needed or needed[0] in ("key", "arch"):
        return ""
    called = "(arch)" if len(needed) == 1 else "(key, shape, dtype)"
    maker = getattr(given, "__name__", "it")
    return (
        f"; {maker}({', '.join(needed)}) was called with {called}: if it makes initializers, write a function of "
        f"nothing that gives one, def scheme(): return {maker}(...)"
    )


def _rule(declared: str | Initialization) -> Initialization:
    if isinstance(declared, str) and ":" in declared:
        declared = _imported(declared)  # type: ignore[assignment]
    return initialization(declared)


def _reference(given: object, otherwise: str) -> str:
    """Python for what `as_scheme` takes: a name that it can be loaded by, if it has one."""
    if isinstance(given, str):
        return repr(given)
    if isinstance(given, Initialization) and _registered("initialization", given):
        return repr(given.name)
    spec = f"{getattr(given, '__module__', '')}:{getattr(given, '__qualname__', '')}"
    with suppress(ValueError):
        if not spec.startswith("__main__:") and _imported(spec) is given:
            return repr(spec)
    return otherwise


def _imported(spec: str) -> object:
    module, _, attribute = spec.partition(":")
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"scheme: cannot load {spec!r} ({error}); give module:attribute of an importable module, or one of "
            f"{', '.join(INITIALIZATIONS)}"
        ) from error
    return found


def _symbolic(
    given: Initialization | Embedding | Block, name: str, declared: object, distribution: str | None
) -> Scheme:
    if declared is not None or distribution is not None:
        raise ValueError(
            f"declared: {name} is a symbolic scheme, which is its own rule; leave declared and distribution"
        )
    fields = {type(given).__name__.lower(): given}
    rule = given if isinstance(given, Initialization) else None
    return Scheme(name, models.init, _our_loss, _our_matrices, rule, "normal", fields=fields, symbolic=True)


def _form(given: object, name: str) -> tuple[str, Callable[[Architecture], Any]]:
    """Whether it is an initializer, one by kind, a model or symbolic, and what gives it for an architecture."""
    if isinstance(given, str):
        return _form(initialization(given), name)
    if isinstance(given, Model):
        return "model", lambda arch: given
    if isinstance(given, Initialization | Embedding | Block):
        return "symbolic", lambda arch: given
    if isinstance(given, Mapping):
        return "initializers", lambda arch: given
    if not callable(given):
        raise SchemeError(
            f"scheme: {name} is a {type(given).__name__}; expected a name, an Initialization, Embedding or Block, an "
            "initializer (key, shape, dtype), a mapping of them by kind, a Model, or a function of arch that gives one"
        )
    needed = _required(given)
    if _takes(given, 3) and len(needed) >= 2:
        return "initializers", lambda arch: given
    if len(needed) > 1:
        raise SchemeError(f"scheme: {name} needs {', '.join(needed)}; expected (key, shape, dtype), (arch) or nothing")
    made = (lambda arch: given(arch)) if needed else (lambda arch: given())
    with blamed(name, _ANY):
        form, _ = _form(made(_ANY), name)
    if form == "symbolic" and needed:
        raise SchemeError(
            f"scheme: {name} gives a symbolic scheme, whose symbols stand for the sizes; give that itself"
        )
    return form, lambda arch: _form(made(arch), name)[1](arch)


def _required(function: Callable[..., Any]) -> list[str]:
    """Its positional parameters without a default."""
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether it can be called with so many positional arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    return True


def _per_kind(given: object, name: str) -> Mapping[str, Initializer]:
    if not isinstance(given, Mapping):
        return dict.fromkeys(MATRIX_KINDS, given)  # type: ignore[arg-type]
    for kind in given:
        if kind not in (*MATRIX_KINDS, "default"):
            raise SchemeError(
                f"scheme: {name}: unknown matrix kind {kind!r}; choose one of default, {', '.join(MATRIX_KINDS)}"
            )
    for kind, initializer in given.items():
        if not (callable(initializer) and _takes(initializer, 3)):
            raise SchemeError(f"scheme: {name}: {kind} must be an initializer (key, shape, dtype), got {initializer!r}")
    missing = [kind for kind in MATRIX_KINDS if kind not in given]
    if missing and "default" not in given:
        raise SchemeError(f"scheme: {name}: no initializer for {', '.join(missing)}; give one as 'default'")
    return {kind: given[kind] if kind in given else given["default"] for kind in MATRIX_KINDS}


def drawn_by(initializer: Initializer, key: Any, shape: tuple[int, ...], name: str) -> Any:
    """float32[shape] from an initializer. name: in the SchemeError for what is no array of that shape."""
    found = initializer(key, shape, jnp.float32)
    _require_shape(found, shape, name)
    return found


def _require_shape(found: Any, shape: tuple[int, ...], name: str) -> None:
    if getattr(found, "shape", None) != shape:
        got = f"one of {found.shape}" if hasattr(found, "shape") else f"a {type(found).__name__}"
        raise SchemeError(f"scheme {name}: expected an array of shape {shape}, got {got}")


def _assembled(
    by_kind: Callable[[Architecture], Mapping[str, Initializer]], name: str, key: Any, arch: Architecture
) -> Any:
    """Our Transformer with every matrix from its initializer, each layer with a key of its own."""
    initializers = by_kind(arch)

    def matrix(kind: str) -> Any:
        own = jax.random.fold_in(key, MATRIX_KINDS.index(kind))
        draw = partial(drawn_by, initializers[kind], shape=arch.shape(kind), name=f"{name}: {kind}")
        return jax.vmap(draw)(jax.random.split(own, arch.num_layers)) if "." in kind else draw(own)

    return assemble(arch, matrix)


def _of_our_shapes(params: Any, arch: Architecture, name: str) -> Any:
    """A Transformer's parameters, where its matrices are the architecture's."""
    expected = jax.eval_shape(lambda key: models.init(key, arch).matrices, jax.random.key(0))
    matrices = params.matrices
    if set(matrices) != set(expected):
        raise SchemeError(
            f"scheme {name}: expected the matrices {', '.join(expected)}, got {', '.join(matrices)}; "
            f"at {described(arch)}"
        )
    for kind, weight in expected.items():
        _require_shape(matrices[kind], weight.shape, f"{name}: {kind}")
    return params


def _our_loss(params: Any, tokens: Any, arch: Architecture) -> Any:
    return models.loss(params, tokens, arch)[0]


def _our_matrices(params: Any) -> dict[str, Any]:
    return params.matrices


def _own_model(
    resolve: Callable[[Architecture], Model], name: str, rule: Initialization | None, distribution: str | None
) -> Scheme:
    def init(key: Any, arch: Architecture) -> Any:
        return _called(resolve(arch).init, (key,), arch)

    def our_init(key: Any, arch: Architecture) -> Any:
        return _of_our_shapes(init(key, arch), arch, name)

    def loss(params: Any, tokens: Any, arch: Architecture, place: Callable[[Any], Any] = lambda x: x) -> Any:
        given: Callable[..., Any] = resolve(arch).loss  # type: ignore[assignment]
        if not _marks(given):
            return _called(given, (params, tokens), arch)
        names = [name for name in _required(given) if name != "place"]  # wherever place stands among them
        return given(**dict(zip(names, (params, tokens, arch), strict=False)), place=place)

    def matrices(params: Any) -> dict[str, Any]:
        found = _leaves(params) if model.matrices is None else model.matrices(params)
        if not found:
            raise SchemeError(f"scheme: {name} has no weights of two or three axes; name them with matrices=")
        for kind, weight in found.items():
            if jnp.ndim(weight) not in (2, 3):
                raise SchemeError(f"scheme: {name}: {kind} has shape {weight.shape}; expected two or three axes")
        return {kind: weight if jnp.ndim(weight) == 3 else weight[None] for kind, weight in found.items()}

    model = resolve(_ANY)
    with blamed(name, _ANY):
        ours = isinstance(jax.eval_shape(lambda key: init(key, _ANY), jax.random.key(0)), models.Transformer)
    if ours:
        return Scheme(name, our_init, _our_loss, _our_matrices, rule, distribution)
    return Scheme(
        name, init, loss if model.loss else None, matrices, rule, distribution, ours=False,
        marks_places=model.loss is not None and _marks(model.loss), named=model.matrices is not None,
    )  # fmt: skip


def _marks(loss: Callable[..., Any]) -> bool:
    return "place" in inspect.signature(loss).parameters


def _called(function: Callable[..., Any], arguments: tuple[Any, ...], arch: Architecture) -> Any:
    """With the architecture as one more argument, if it needs one."""
    return function(*arguments, arch) if len(_required(function)) > len(arguments) else function(*arguments)


def _leaves(params: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in leaves
        if jnp.ndim(leaf) in (2, 3) and jnp.issubdtype(leaf.dtype, jnp.floating)
    }
