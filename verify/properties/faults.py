"""Mistakes that people make in initialisation code, planted into registered schemes: what the properties must catch.

Each takes the matrices of a right draw and returns wrong ones; the scheme still declares what it was, where it does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

import models
from models.initialization import assemble
from theory import Architecture
from theory.initialization import INITIALIZATIONS, MATRIX_KINDS, truncated_std
from verify.properties.scheme import Model, Scheme, as_scheme

Matrices = dict[str, Array]
Mistake = Callable[[Matrices, PRNGKeyArray, Architecture], Matrices]
"""matrices by kind, [num_layers, fan_in, fan_out] or [1, rows, columns]; the key they were drawn with"""


@dataclass(frozen=True)
class Fault:
    """A mistake in a registered scheme, or (mistake: None) in how an initializer is used for several matrices at once.

    caught_by: the property that must fail. declared: whether the scheme says what it was meant to be; else the property
    goes by what it measures. held: fields of `Architecture` that it takes. layouts: as in `Limits`.
    """

    name: str
    scheme: str
    mistake: Mistake | None
    caught_by: str = "declared_std"
    declared: bool = True
    held: Mapping[str, Any] = field(default_factory=dict)
    layouts: tuple[str, ...] = ()

    def planted(self) -> Scheme:
        """The faulty scheme."""
        if self.mistake is None:
            return as_scheme(f"jax.nn.initializers:{self.scheme}_normal", name=self.name)
        mistake = self.mistake

        def init(key: PRNGKeyArray, arch: Architecture) -> models.Transformer:
            ruled = replace(arch, initialization=self.scheme)
            drawn = mistake(models.init(key, ruled).matrices, key, ruled)
            return assemble(ruled, lambda kind: drawn[kind] if "." in kind else drawn[kind][0])

        law = None if INITIALIZATIONS[self.scheme].truncation else "normal"
        return as_scheme(Model(init), self.scheme if self.declared else None, law, self.name)


def _scaled(kind: str, factor: float, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    return drawn | {kind: drawn[kind] * factor}


def _swapped(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """fan_out where the rule says fan_in."""
    fan_in, fan_out = arch.shape(kind)
    return drawn | {kind: drawn[kind] * (fan_in / fan_out) ** 0.5}


def _without_depth(
    kind: str, base: int, power: float, drawn: Matrices, key: PRNGKeyArray, arch: Architecture
) -> Matrices:
    """The factor (base N)^power is left out."""
    return drawn | {kind: drawn[kind] * (base * arch.num_layers) ** -power}


def _reused_key(kind: str, of: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """Drawn with the key of another kind."""
    own = jax.random.fold_in(key, MATRIX_KINDS.index(of))
    std = jnp.asarray(arch.std(kind), jnp.float32)[:, None, None]
    return drawn | {kind: jax.random.normal(own, drawn[kind].shape) * std}


def _one_key(drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """One key for all kinds."""
    for kind in drawn:
        drawn = _reused_key(kind, "embedding", drawn, key, arch)
    return drawn


def _repeated_layer(kind: str, layer: int, of: int, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """A layer drawn with another layer's key."""
    weight = drawn[kind]
    return drawn | {kind: weight.at[layer % len(weight)].set(weight[of % len(weight)])}


def _same_in_all_layers(drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    return {kind: jnp.broadcast_to(weight[:1], weight.shape) for kind, weight in drawn.items()}


def _of_unit_std(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """A standard deviation of 1, whatever the inputs."""
    return drawn | {kind: drawn[kind] / jnp.asarray(arch.std(kind), jnp.float32)[:, None, None]}


def _of_unit_std_if_tied(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """A lookup's standard deviation, in a table that as a head has d inputs."""
    return _of_unit_std(kind, drawn, key, arch) if arch.tied else drawn


def _by_its_own_std(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """Divided by its standard deviation, though it starts at 0."""
    return drawn | {kind: drawn[kind] / drawn[kind].std()}


def _in_all_blocks(factor: float, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    return {kind: weight * (factor if "." in kind else 1) for kind, weight in drawn.items()}


def _nominal(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """Cut off, and not corrected for it."""
    cutoff = arch.truncation(kind)
    assert cutoff is not None
    return drawn | {kind: drawn[kind] * float(truncated_std(cutoff))}


def _variance(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """The variance where the standard deviation belongs."""
    return drawn | {kind: drawn[kind] * float(arch.std(kind)[0])}


def _fan_of_a_head(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """d_head for d_model: the fans of one head's slice of a fused matrix."""
    return drawn | {kind: drawn[kind] * arch.num_heads**0.5}


def _layers_in_the_fan(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """A stacked shape given to an initializer that counts the layers as inputs."""
    return drawn | {kind: drawn[kind] / arch.num_layers**0.5}


def _shifted(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """A mean of a tenth of a standard deviation, the second moment as declared."""
    std = jnp.asarray(arch.std(kind), jnp.float32)[:, None, None]
    return drawn | {kind: (drawn[kind] + 0.1 * std) / 1.01**0.5}


def _uniform(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """Uniform entries of the declared standard deviation, though the scheme says normal."""
    std = jnp.asarray(arch.std(kind), jnp.float32)[:, None, None] * 3**0.5
    return drawn | {kind: std * (2 * jax.scipy.stats.norm.cdf(drawn[kind] / std * 3**0.5) - 1)}


def _tiled_heads(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """One head's columns copied to all."""
    weight = drawn[kind]
    return drawn | {kind: jnp.tile(weight[..., : arch.d_head], weight.shape[-1] // arch.d_head)}


def _transposed(kind: str, of: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """One matrix the transposed of another, of equal size."""
    return drawn | {kind: drawn[of].transpose(0, 2, 1)}


def _zero_row(kind: str, row: int, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """A padding row of zeros, the others larger."""
    weight = drawn[kind]
    return drawn | {kind: weight.at[:, row].set(0.0) * (weight.shape[1] / (weight.shape[1] - 1)) ** 0.5}


def _one_wide_column(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """One unit 1.5 times as large as the others."""
    return drawn | {kind: drawn[kind].at[..., 0].multiply(1.5)}


def _symmetric(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """Half of the entries are the others, transposed."""
    upper = jnp.triu(drawn[kind])
    return drawn | {kind: upper + jnp.triu(drawn[kind], 1).transpose(0, 2, 1)}


def _of_rank_one(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """Every row a multiple of one row, the standard deviation as declared."""
    std = jnp.asarray(arch.std(kind), jnp.float32)[:, None, None]
    return drawn | {kind: drawn[kind][:, :1] * drawn[kind][..., :1] / std}


def _constant_key(kind: str, drawn: Matrices, key: PRNGKeyArray, arch: Architecture) -> Matrices:
    """A seed of its own, whatever the key."""
    return drawn | {kind: models.init(jax.random.key(0), arch).matrices[kind]}


def _there(kind: str) -> dict[str, Any]:
    """What an architecture needs to have that matrix."""
    return {"tied": False} if kind == "head" else {}


def _faults() -> list[Fault]:
    pairs, same = "independent_matrices", "independent_entries"
    found = [
        Fault(f"{kind} is 1.15 times too large", "lecun", partial(_scaled, kind, 1.15), held=_there(kind))
        for kind in MATRIX_KINDS
    ]
    found.append(
        Fault("attention.value is 1.15 times too small", "megatron", partial(_scaled, "attention.value", 1 / 1.15))
    )
    found += [
        Fault(f"{scheme}: {kind} has fan_out for fan_in", scheme, partial(_swapped, kind))
        for scheme, kind in (
            ("he", "feed_forward.up"), ("he", "feed_forward.down"), ("he", "feed_forward.gate"),
            ("he", "attention.key"), ("lecun", "attention.value"), ("palm", "feed_forward.down"),
            ("ssp", "feed_forward.up"),
        )
    ]  # fmt: skip
    found += [
        Fault(f"{scheme}: {kind} without its depth factor", scheme, partial(_without_depth, kind, base, power))
        for scheme, kind, base, power in (
            ("megatron", "attention.output", 2, -0.5), ("gpt2", "feed_forward.down", 2, -0.5),
            ("opt", "attention.output", 2, -0.5), ("bloom", "feed_forward.down", 2, -0.5),
            ("wang", "attention.output", 1, -1.0), ("glm", "attention.value", 2, -0.5),
            ("deepnorm", "feed_forward.up", 8, -0.25), ("t_fixup", "embedding", 9, -0.25),
        )
    ]  # fmt: skip
    found += [
        Fault(f"{kind} drawn with the key of {of}", "small", partial(_reused_key, kind, of), pairs, held=_there(kind))
        for kind, of in (
            ("attention.key", "attention.query"), ("attention.value", "attention.key"),
            ("feed_forward.gate", "feed_forward.up"), ("feed_forward.down", "attention.output"), ("head", "embedding"),
        )
    ]  # fmt: skip
    found.append(Fault("one key for every matrix", "megatron", _one_key, pairs))
    found += [
        Fault(f"{kind}: layer {layer + 1 if layer >= 0 else 'N'} with the key of layer {of + 1}", "gpt2",
              partial(_repeated_layer, kind, layer, of), pairs)
        for kind, layer, of in (
            ("attention.query", 1, 0), ("attention.output", -1, 0), ("feed_forward.up", 2, 1),
            ("feed_forward.down", 1, 0),
        )
    ]  # fmt: skip
    found.append(Fault("every layer is a copy of the first", "xavier", _same_in_all_layers, pairs))
    alone = partial(_of_unit_std_if_tied, "embedding")
    found += [Fault(f"a tied table of standard deviation 1 ({scheme})", scheme, alone) for scheme in ("lecun", "he")]
    found += [
        Fault("cut off at 2 and not corrected", "ssp", partial(_nominal, "feed_forward.up")),
        Fault("a query cut off at 2 and not corrected", "mup_simple", partial(_nominal, "attention.query")),
        Fault("a variance for a standard deviation", "small", partial(_variance, "feed_forward.down")),
        Fault("fans of one head", "lecun", partial(_fan_of_a_head, "attention.query")),
        Fault("layers counted as inputs", "he", partial(_layers_in_the_fan, "feed_forward.up")),
        Fault("a mean of 0.1", "small", partial(_shifted, "feed_forward.up"), "zero_mean"),
        Fault("uniform for normal", "small", partial(_uniform, "attention.output"), "distribution"),
        Fault("key heads are copies of one", "small", partial(_tiled_heads, "attention.key"), same),
        Fault("query heads are copies of one", "small", partial(_tiled_heads, "attention.query"), same),
        Fault(
            "output is query, transposed", "small", partial(_transposed, "attention.output", "attention.query"), pairs
        ),
        Fault("a padding row of zeros", "small", partial(_zero_row, "embedding", 0), "exchangeable"),
        Fault("one unit 1.5 times the others", "he", partial(_one_wide_column, "feed_forward.up"), "exchangeable"),
        Fault("a symmetric matrix", "small", partial(_symmetric, "attention.query"), same),
        Fault("a matrix of rank one", "small", partial(_of_rank_one, "feed_forward.up"), "spectral_norm"),
        Fault("the key is not used", "megatron", partial(_constant_key, "attention.value"), "determined_by_key"),
    ]
    up, down = "feed_forward.up", "feed_forward.down"
    found += [
        Fault("layers stacked without batch_axis", "he", None, "layouts", declared=False, layouts=("stacked",)),
        Fault("query, key and value fused without their own fan-out", "xavier", None, "layouts", declared=False,
              layouts=("fused",)),
        Fault("one standard deviation for every width", "megatron", partial(_of_unit_std, up), "width_scaling"),
        Fault("divided by a standard deviation of 0", "zero_output", partial(_by_its_own_std, down), "finite"),
        Fault("too large for float16", "megatron", partial(_scaled, up, 1e5), "finite"),
        Fault("an output matrix without its fan-in", "megatron", partial(_of_unit_std, down), "stream_band"),
        Fault("a table 1,000 times too small", "megatron", partial(_scaled, "embedding", 1e-3), "amplification",
              declared=False),
        Fault("a table 100 times too small", "megatron", partial(_scaled, "embedding", 1e-2), "two_requirements",
              declared=False),
        Fault("blocks twice too large, in a post-norm network", "xavier", partial(_in_all_blocks, 2.0),
              "growth_exponent", declared=False, held={"block": "post_ln"}),
        Fault("blocks four times too large", "megatron", partial(_in_all_blocks, 4.0), "two_requirements",
              declared=False),
        Fault("blocks twice as large as declared", "megatron", partial(_in_all_blocks, 2.0), "predicted"),
        Fault("a tied table of standard deviation 1 (megatron)", "megatron", alone, "predicted", held={"tied": True}),
    ]  # fmt: skip
    return found


FAULTS: dict[str, Fault] = {fault.name: fault for fault in _faults()}
