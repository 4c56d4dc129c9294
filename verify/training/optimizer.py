"""Optimizers and their schedules, from Optax; their numbers stay arguments so that runs share a program."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from models.parameters import Transformer
from verify.training.clipping import adagc, spam, zclip
from verify.training.schedule import Number, Schedule, share_of_peak

Method = Literal["adamw", "adafactor", "sgd"]
Decay = Literal["coupled", "independent", "rate_squared"]
Clipping = Literal["global_norm", "zclip", "adagc", "spam"]
Parametrization = Literal["standard", "mup_simple", "mup", "depth_mup"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Numbers:
    """An `Optimizer`'s numbers, also as arrays: what optimizers of one form may differ in.

    table_decay: weight_decay where embeddings decay, else 0. clip: infinite where there is none. final_share,
    schedule_steps: with the defaults resolved, so that they are of one run.
    """

    learning_rate: Number
    final_share: Number
    schedule_steps: Number
    warmup_steps: Number
    hold_steps: Number
    beta1: Number
    beta2: Number
    epsilon: Number
    weight_decay: Number
    table_decay: Number
    embedding_rate: Number
    base_d_model: Number
    base_num_layers: Number
    clip: Number


@dataclass(frozen=True)
class Optimizer:
    """AdamW, Adafactor or SGD with momentum; clipping; a schedule; weight decay; rates by kind of matrix.

    method: "adamw" (Loshchilov and Hutter, arXiv 1711.05101); "adafactor", unfactored as PaLM has it (arXiv
    2204.02311): steps in proportion to each matrix's root mean square, beta2 = 1 - k^-0.8 at step k; "sgd".

    learning_rate: peak. schedule: `verify.training.schedule`; warmup_steps: linear from 0; hold_steps: at the peak
    after it. final_share: of the peak, or final_rate: as it is, when the schedule ends (cosine, linear), which is at
    schedule_steps or, where that is 0, with the run.

    beta1: of the mean gradient, and SGD's momentum; beta2, epsilon: Adam's.

    weight_decay: on matrices and tables, not on norms and biases; decay: times the matrix's own rate ("coupled"), the
    schedule's share of the peak ("independent", arXiv 2309.14322), or the rate's square ("rate_squared", PaLM).
    decay_embeddings: whether the tables decay, token and position. embedding_rate: factor on their rate.

    parametrization: where rates follow the size. "mup_simple": a block's matrices have base_d_model / fan_in times the
    rate (arXiv 2309.14322); "mup": so has an untied head (arXiv 2203.03466, table 3, Adam); "depth_mup": a block's
    matrices sqrt(base_num_layers / num_layers) besides (arXiv 2310.02244).

    clip: largest norm, none where 0. clipping: of the whole gradient ("global_norm"), or beside that as ZClip, AdaGC
    or SPAM do (`verify.training.clipping`); SPAM is AdamW's alone.

    Raises ValueError that names the field and the value.
    """

    method: Method = "adamw"
    learning_rate: float = 3e-3
    schedule: Schedule = "cosine"
    warmup_steps: int = 50
    hold_steps: int = 0
    final_share: float = 0.1
    final_rate: float | None = None
    schedule_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    decay: Decay = "coupled"
    decay_embeddings: bool = True
    embedding_rate: float = 1.0
    parametrization: Parametrization = "standard"
    base_d_model: int = 128
    base_num_layers: int = 4
    clip: float = 1.0
    clipping: Clipping = "global_norm"

    def __post_init__(self) -> None:
        for name, choices in (
            ("method", Method), ("schedule", Schedule), ("decay", Decay), ("parametrization", Parametrization),
            ("clipping", Clipping),
        ):  # fmt: skip
            known = get_args(choices)
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: unknown value {getattr(self, name)!r}; choose one of {', '.join(known)}")
        for name in ("learning_rate", "epsilon", "base_d_model", "base_num_layers"):
            _require(name, getattr(self, name), getattr(self, name) > 0, "a positive number")
        for name in ("weight_decay", "clip", "warmup_steps", "hold_steps", "schedule_steps", "embedding_rate"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("beta1", "beta2"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        _require("final_share", self.final_share, 0 <= self.final_share <= 1, "in [0, 1]")
        if self.final_rate is not None:
            _require("final_rate", self.final_rate, self.final_rate >= 0, "0 or more")
        if self.clipping == "spam" and self.method != "adamw":
            raise ValueError(f"clipping: 'spam' cuts by Adam's second moment, which method {self.method!r} has not")

    @property
    def kind(self) -> "Optimizer":
        """What decides of which arrays its state is, all else as it is by default."""
        return Optimizer(self.method, clipping=self.clipping)

    @property
    def form(self) -> "Optimizer":
        """All but its numbers, which are as they are by default."""
        return dataclasses.replace(
            self.kind, schedule=self.schedule, decay=self.decay, parametrization=self.parametrization
        )

    def numbers(self, steps: int) -> Numbers:
        """Of a run of so many steps."""
        return Numbers(
            learning_rate=self.learning_rate,
            final_share=self.final_share if self.final_rate is None else self.final_rate / self.learning_rate,
            schedule_steps=self.schedule_steps or steps,
            warmup_steps=self.warmup_steps,
            hold_steps=self.hold_steps,
            beta1=self.beta1,
            beta2=self.beta2,
            epsilon=self.epsilon,
            weight_decay=self.weight_decay,
            table_decay=self.weight_decay if self.decay_embeddings else 0.0,
            embedding_rate=self.embedding_rate,
            base_d_model=self.base_d_model,
            base_num_layers=self.base_num_layers,
            clip=self.clip or math.inf,
        )

    def rate(self, numbers: Numbers, step: Int[Array, ""]) -> Float[Array, ""]:
        """The rate at that step, counted from 0."""
        lengths = numbers.schedule_steps, numbers.warmup_steps, numbers.hold_steps
        return numbers.learning_rate * share_of_peak(self.schedule, step, *lengths, numbers.final_share)

    def transformation(self, numbers: Numbers) -> optax.GradientTransformation:
        """Clipping and the method: from gradients to directions, for a rate of 1, which the caller steps against."""
        match self.method:
            case "adamw":
                method = optax.scale_by_adam(numbers.beta1, numbers.beta2, numbers.epsilon)
            case "adafactor":
                method = optax.chain(
                    optax.scale_by_factored_rms(factored=False, decay_rate=0.8),
                    _by_matrix(optax.clip_by_block_rms(1.0)),
                    _by_matrix(optax.scale_by_param_block_rms()),
                    optax.ema(numbers.beta1, debias=False),
                )
            case "sgd":
                method = optax.trace(numbers.beta1)
        match self.clipping:
            case "zclip":
                clipping = zclip(numbers.clip)
            case "adagc":
                clipping = adagc(numbers.clip)
            case "global_norm" | "spam":
                clipping = optax.clip_by_global_norm(numbers.clip)
        return optax.chain(clipping, spam(method) if self.clipping == "spam" else method)

    def updates(
        self, directions: Transformer, params: Transformer, rate: Float[Array, ""], numbers: Numbers
    ) -> Transformer:
        """What is added to the weights at that rate, decay included."""

        def update(path: Any, direction: Array, weight: Array) -> Array:
            own = rate * self._rate_factor(path, weight, numbers)
            decay = {"coupled": own, "independent": rate / numbers.learning_rate, "rate_squared": rate**2}[self.decay]
            table = path[-1].name in _TABLES
            if not table and path[-1].name != "weight":
                return -own * direction
            return -own * direction - ((numbers.table_decay if table else numbers.weight_decay) * decay) * weight

        return jax.tree_util.tree_map_with_path(update, directions, params)

    def _rate_factor(self, path: Any, weight: Array, numbers: Numbers) -> Number:
        if path[-1].name in _TABLES:
            return numbers.embedding_rate
        in_block = path[0].name == "blocks"
        if path[-1].name != "weight" or self.parametrization == "standard":
            return 1.0
        if not in_block and self.parametrization == "mup_simple":
            return 1.0
        width = numbers.base_d_model / weight.shape[-2]
        deep = in_block and self.parametrization == "depth_mup"
        return width * jnp.sqrt(numbers.base_num_layers / weight.shape[0]) if deep else width


_TABLES = ("embedding", "position")


def _by_matrix(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same, of no state, for each layer's arrays apart, though they are stacked."""

    def update(updates: Transformer, state: Any, params: Transformer) -> tuple[Transformer, Any]:
        def apart(updates: Any, params: Any) -> Any:
            return transformation.update(updates, optax.EmptyState(), params)[0]

        others = apart(_others(updates), _others(params))
        return Transformer(blocks=jax.vmap(apart)(updates.blocks, params.blocks), **others), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _others(tree: Transformer) -> dict[str, Any]:
    """All that is in no block."""
    return {name: value for name, value in vars(tree).items() if name != "blocks"}


def _require(name: str, value: int | float, good: bool, expected: str) -> None:
    if not (good and math.isfinite(value)):
        raise ValueError(f"{name}: must be {expected}, got {value!r}")
