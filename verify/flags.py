"""What each command takes from the shell: a field a flag, its docstring the help. Nothing here imports JAX."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from theory.command_line import ArchitectureFlags, Preset
from verify.training.detection import Recovery
from verify.training.optimizer import Optimizer

_OPTIMIZER_HELP = {
    "method": "adamw, adafactor (unfactored, as PaLM's) or sgd",
    "learning_rate": "peak, where there are no --rates",
    "schedule": "how the rate falls after warm-up and hold: cosine, linear, inverse_sqrt or constant",
    "warmup_steps": "steps of linear warm-up from 0",
    "hold_steps": "steps at the peak after warm-up",
    "final_share": "share of the peak rate at the last step of a cosine or linear schedule",
    "final_rate": "the rate itself at the last step, instead of a share",
    "schedule_steps": "steps of the schedule, where it is longer than the run (0: those of the run)",
    "beta1": "decay of the mean gradient; momentum of sgd",
    "beta2": "decay of the mean squared gradient",
    "epsilon": "added to the root of the mean squared gradient",
    "weight_decay": "on matrices and tables, not on norms and biases",
    "decay": "weight decay times the matrix's rate (coupled), the schedule (independent), or rate^2 (rate_squared)",
    "decay_embeddings": "whether token and position table decay too",
    "embedding_rate": "factor on the tables' rate (0: they stay as they are)",
    "parametrization": "how rates follow the size: standard, mup_simple, mup or depth_mup",
    "base_d_model": "width at which muP's rates are the given one",
    "base_num_layers": "depth at which depth-muP's rates are the given one",
    "clip": "largest gradient norm (0: no clipping)",
    "clipping": "of the global norm, or beside it zclip, adagc or spam",
}

_RECOVERY_HELP = {
    "window": "steps whose median loss a spike lies above",
    "excess": "by how many nats",
    "patience": "in how many steps in a row",
    "back": "steps before the spike, at least, that the run goes back (PaLM: about 100)",
    "skip": "batches left out from there on (PaLM: 200 to 500)",
    "every": "steps from one kept state to the next",
    "ring": "how many states are kept",
    "most": "recoveries of a run; later spikes are ridden out",
}


def _flags(kind: type, help: dict[str, str]) -> Any:
    """The fields of a dataclass without its checks: tyro would print what those raise as a box of its own."""
    fields = [
        (field.name, Annotated[field.type, tyro.conf.arg(help=help[field.name])], field)
        for field in dataclasses.fields(kind)
    ]
    return dataclasses.make_dataclass(f"{kind.__name__}Flags", fields, frozen=True, namespace={"__module__": __name__})


OptimizerFlags: Any = _flags(Optimizer, _OPTIMIZER_HELP)
RecoveryFlags: Any = _flags(Recovery, _RECOVERY_HELP)


@dataclasses.dataclass(frozen=True)
class MeshFlags:
    data: int = 1
    """ways in which the batch is cut"""
    fsdp: int = 1
    """ways in which batch and weights are cut"""
    tensor: int = 1
    """ways in which heads, hidden units and vocabulary are cut"""


@dataclasses.dataclass(frozen=True)
class HostFlags:
    coordinator: str | None = None
    """ADDRESS:PORT of process 0, or auto: as Slurm, Kubernetes or the TPU pod says (None: a single process)"""
    processes: int | None = None
    """how many there are (None: as the cluster says)"""
    process: int | None = None
    """number of this one, from 0 (None: as the cluster says)"""


@dataclasses.dataclass(frozen=True)
class Init:
    """Set prediction and autodiff side by side at initialisation."""

    arch: ArchitectureFlags = dataclasses.field(default_factory=ArchitectureFlags)
    """the model"""
    preset: Preset = None
    batch_size: int = 8
    """sequences in the batch"""
    seeds: int = 8
    """independent draws of weights and tokens"""
    tolerance: float = 0.1
    """largest relative error of a std or gradient norm that counts as agreement"""


@dataclasses.dataclass(frozen=True)
class Training:
    arch: ArchitectureFlags = dataclasses.field(default_factory=lambda: ArchitectureFlags(num_layers=4, d_model=64))
    """the model"""
    preset: Preset = None
    small: bool = False
    """that preset at 4 layers, d_model 64, 2 heads, 64 tokens of 256 words; without it, at its published size"""
    optimizer: OptimizerFlags = dataclasses.field(default_factory=OptimizerFlags)
    """optimizer and schedule"""
    corpus: str = "stdlib"
    """stdlib, words, letters, zipf, text:PATH, tokens:PATH.bin or hub:NAME (docs/corpora.md)"""
    batch_size: int = 8
    """sequences a step"""
    steps: int = 300
    """optimizer steps"""
    recompute: bool = False
    """compute each block's activations once more in the backward pass instead of keeping them"""
    windows: int = 0
    """train on so many fixed sequences, spread over the text (0: all of it)"""
    batch_ramp: tuple[tuple[int, int], ...] = ()
    """pairs STEP SIZE: from that step on so many sequences a step"""
    sequence_ramp: tuple[tuple[int, int], ...] = ()
    """pairs STEP LENGTH: from that step on so many tokens a sequence"""
    accumulate: int = 1
    """parts of a batch whose gradients are computed one after the other"""
    dropout: float = 0.0
    """rate, on embedding, attention probabilities and sub-layers' outputs"""
    z_loss: float = 0.0
    """coefficient of the mean of log^2 Z (PaLM's is 1e-4)"""
    forced_logit: float | None = None
    """scale every head's attention logits so that the largest is this"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """of weights and activations in a step; weights are kept in float32"""


@dataclasses.dataclass(frozen=True)
class Train(Training):
    """Train every rate with every seed and keep one netCDF file a run; finished runs are not repeated."""

    rates: tuple[float, ...] = ()
    """peak learning rates, one run each; none: the optimizer's learning rate alone"""
    seeds: int = 1
    """seeds of weights and data order, from 0"""
    lanes: int | None = None
    """most runs that advance together in one compiled program (None: as many as pay and fit into memory)"""
    mesh: MeshFlags = dataclasses.field(default_factory=MeshFlags)
    """devices that one run is spread over (1, 1, 1: each run on one device, lanes side by side)"""
    hosts: HostFlags = dataclasses.field(default_factory=HostFlags)
    """processes that train each run together"""
    out: Path = Path("runs")
    """folder of the runs' files"""


@dataclasses.dataclass(frozen=True)
class Recover(Training):
    """Train one run; at a loss spike go back, leave out the batches around it, and go on (docs/recovery.md)."""

    seed: int = 0
    """of weights, data order and dropout"""
    recovery: RecoveryFlags = dataclasses.field(default_factory=RecoveryFlags)
    """what a spike is, and how far the run goes back"""
    out: Path = Path("runs")
    """folder of the run's file, and of its states"""


@dataclasses.dataclass(frozen=True)
class _SweepOptions:
    file: tyro.conf.Positional[Path]
    """TOML file of the sweep"""
    out: Path = Path("runs")
    """folder of the runs' files"""
    shard: str = "0/1"
    """I/N: the I-th of N equal shares of the runs, I from 0 to N - 1"""


@dataclasses.dataclass(frozen=True)
class _SweepLanes(_SweepOptions):
    lanes: int | None = None
    """most runs that advance together in one compiled program (None: as many as pay and fit into memory)"""


@dataclasses.dataclass(frozen=True)
class SweepPlan(_SweepLanes):
    """List the runs with the hash of their configuration, how far they are, and what the rest costs."""

    mesh: MeshFlags = dataclasses.field(default_factory=MeshFlags)
    """devices that one run is to be spread over; they need not be here"""
    device_flops: float | None = None
    """floating-point operations a second that a device achieves, not its peak; then the hours are printed"""
    measure: bool = False
    """train some steps of the largest program, less than a minute, to say how long the sweep takes on this machine"""


@dataclasses.dataclass(frozen=True)
class SweepRun(_SweepLanes):
    """Train the runs that have no file yet, one netCDF file a run; the same command goes on after an interruption."""

    mesh: MeshFlags = dataclasses.field(default_factory=MeshFlags)
    """devices that one run is spread over (1, 1, 1: each run on one device, lanes side by side)"""
    hosts: HostFlags = dataclasses.field(default_factory=HostFlags)
    """processes that train each run together"""
    on: Literal["here", "ray"] = "here"
    """here, or the machines of a Ray cluster, which see OUT under the same path"""
    address: str | None = None
    """of the Ray cluster, as auto or HOST:PORT (None: one is started on this machine)"""


@dataclasses.dataclass(frozen=True)
class SweepStatus(_SweepOptions):
    """Show how far every run is, whoever trains it."""


SweepCommand = (
    Annotated[SweepPlan, tyro.conf.subcommand("plan")]
    | Annotated[SweepRun, tyro.conf.subcommand("run")]
    | Annotated[SweepStatus, tyro.conf.subcommand("status")]
)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train a grid of runs described by a TOML file."""

    command: tyro.conf.OmitSubcommandPrefixes[SweepCommand]


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Train a few steps at several widths and depths: does what the network computes keep its size? Status 1 if not.

    A preset gives the model alone, at 4 layers, d_model 64, 2 heads, 64 tokens of 256 words (docs/coordinates.md).
    """

    arch: ArchitectureFlags = dataclasses.field(
        default_factory=lambda: ArchitectureFlags(num_layers=4, d_model=64, seq_len=32)
    )
    """the model: its depth at every width, its width at every depth; heads stay as wide, d_ff keeps its share"""
    preset: Preset = None
    optimizer: OptimizerFlags = dataclasses.field(
        default_factory=lambda: OptimizerFlags(schedule="constant", warmup_steps=0)
    )
    """optimizer and schedule"""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """widths d_model, in coordinates (none: depths alone)"""
    depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    """depths num_layers, in blocks (none: widths alone)"""
    steps: int = 10
    """optimizer steps; judged after the last one"""
    seeds: int = 4
    """seeds of weights and data order, from 0"""
    tolerance: float = 0.2
    """largest exponent in width or depth that counts as constant"""
    corpus: str = "stdlib"
    """stdlib, words, letters, zipf, text:PATH, tokens:PATH.bin or hub:NAME (docs/corpora.md)"""
    batch_size: int = 8
    """sequences a step, and in the fixed batch"""
    out: Path = Path("coordinates")
    """folder of the table, the slopes and the pictures"""


@dataclasses.dataclass(frozen=True)
class Report:
    """Derive, predict, measure, train and judge; writes OUT/index.html and its data."""

    arch: ArchitectureFlags = dataclasses.field(default_factory=ArchitectureFlags)
    """the model at initialisation; what you change here changes in --trained too, unless you set it there"""
    trained: ArchitectureFlags = dataclasses.field(
        default_factory=lambda: ArchitectureFlags(num_layers=8, d_model=64, num_heads=2)
    )
    """the model that is trained, small so that 48 runs fit into minutes"""
    corpus: str = "stdlib"
    """stdlib, words, letters, zipf, text:PATH, tokens:PATH.bin or hub:NAME (docs/corpora.md)"""
    rates: tuple[float, ...] = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
    """peak learning rates"""
    seeds: int = 3
    """training seeds at every rate"""
    steps: int = 200
    """optimizer steps a run"""
    init_seeds: int = 8
    """seeds of the measurement at initialisation"""
    jacobian_seeds: int = 2
    """seeds of the measured Jacobian norms"""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """widths at which Vanilla's first block is measured"""
    out: Path = Path("report")
    """folder of the report"""


@dataclasses.dataclass(frozen=True)
class Claims:
    """Train what the papers' claims are judged on, and judge them; finished runs are not repeated."""

    ids: tyro.conf.Positional[tuple[str, ...]] = ()
    """claims such as SSP-1; none: all that are judged on trained runs"""
    scale: Literal["tiny", "small", "gpu"] = "small"
    """tiny: whether it runs; small: hours on 2 cores; gpu: one accelerator"""
    plan: bool = False
    """print what is to be done and how long it takes here, by training some steps, and stop"""
    lanes: int | None = None
    """most runs that advance together in one compiled program (None: as many as pay and fit into memory)"""
    out: Path = Path("claims")
    """folder of the runs and verdicts"""


@dataclasses.dataclass(frozen=True)
class Check:
    """Test an initialisation scheme across architectures; print the smallest that violates each property.

    Exit status 1 where one fails. docs/properties.md says what they are.
    """

    scheme: tyro.conf.Positional[str]
    """a registered name (megatron, he, ...) or module:attribute: an Initialization, Embedding or Block, an initializer
    (key, shape, dtype), a mapping of them by kind, a Model, or a function that gives one"""
    declared: str | None = None
    """rule that an initializer or a model is held to: a registered name or module:attribute"""
    distribution: Literal["normal", "truncated_normal", "uniform", "orthogonal"] | None = None
    """law of its entries, if it declares one; truncated_normal: cut off at 2 standard deviations, as JAX has it"""
    hold: tuple[str, ...] = ()
    """fields of Architecture held at a value: embedding=vanilla block=post_ln num_layers=12"""
    only: tuple[str, ...] = ()
    """properties to test (none: all)"""
    skip: tuple[str, ...] = ()
    """properties to leave out"""
    layouts: tuple[Literal["stacked", "fused"], ...] = ()
    """shapes that an initializer is to be right for, beside one matrix at a time"""
    amplification: float = 10.0
    """most that gradients may grow from the last place to the first"""
    std_ratio: float = 10.0
    """largest over smallest standard deviation of the stream over the places"""
    growth_exponent: float = 0.6
    """largest exponent of the amplification in the number of layers"""
    thorough: bool = False
    """minutes instead of one: more architectures, a longer search for the smallest"""
    seed: int = 0
    """of the search: the same one draws the same architectures and keys"""
    out: Path | None = None
    """file for the report, in Markdown"""


Command = (
    Annotated[Init, tyro.conf.subcommand("init")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Recover, tyro.conf.subcommand("recover")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Coordinates, tyro.conf.subcommand("coordinates")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Claims, tyro.conf.subcommand("claims")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)
