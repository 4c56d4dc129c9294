"""Every test runs with annotations checked (jaxtyping, beartype), strict JAX promotion, and warnings as errors.

JAX has 8 devices, all of them this CPU.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling is most of a test's time; child processes too
# ... and half of that are the emitters of fused kernels
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false")

from jaxtyping import install_import_hook

# not models.parameters and verify.training.state: JAX and Optax build those trees with other leaves than arrays (masks,
# axes, shapes, None)
CHECKED = [
    f"models.{name}"
    for name in ("attention", "dropout", "feed_forward", "initialization", "linear", "normalization", "probes")
]
CHECKED += [
    f"verify.training.{name}"
    for name in ("clipping", "corpus", "detection", "loop", "mesh", "schedule", "sources", "telemetry")
]
with install_import_hook([*CHECKED, "models.transformer", "verify.measurement"], "beartype.beartype"):
    import models
    import verify.measurement.jacobian
    import verify.training.loop

import shutil  # noqa: E402 - the hook must stand before any import of the packages it checks
import time  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

from theory import Architecture  # noqa: E402
from verify import report  # noqa: E402
from verify.training.compiled import release_when_many  # noqa: E402

assert models and verify

threadpool_limits(1, user_api="blas")  # matrices are small, and threads that wait for each other take 20 times as long
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(autouse=True)
def _room_for_programs():
    """A test that took its time may have compiled: the next ones need room for theirs."""
    start = time.perf_counter()
    yield
    if time.perf_counter() - start > 0.5:
        release_when_many(0.3)


@pytest.fixture(scope="session")
def tiny():
    """Options of the smallest report, into a folder."""

    def options(folder, **changes):
        arch = Architecture(num_layers=2, d_model=16, num_heads=2, seq_len=8)
        sizes = {"rates": (1e-3, 1e-2), "seeds": 2, "steps": 12, "init_seeds": 2, "widths": (16, 32), "batch_size": 2}
        return report.ReportOptions(arch=arch, trained=arch, out=folder, **(sizes | changes))

    return options


@pytest.fixture(scope="session")
def made(tmp_path_factory, worker_id, tiny):
    """Folder of the smallest report, made once by one of pytest's processes; to be read only."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tiny-report"
    with FileLock(f"{folder}.lock"):
        if not (folder / "index.html").exists():
            assert report.run(tiny(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory):
    """The same for one module, to do as it likes with."""
    return shutil.copytree(made, tmp_path_factory.mktemp("report") / "report")
