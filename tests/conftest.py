"""Every test runs with annotations checked (jaxtyping, beartype), strict JAX promotion, and warnings as errors.

JAX has 8 devices, all of them this CPU.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling is most of a test's time; child processes too

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from jaxtyping import install_import_hook

# not models.parameters and verify.training.state: JAX and Optax build those trees with other leaves than arrays (masks,
# axes, shapes, None)
CHECKED = [
    f"models.{name}" for name in ("attention", "feed_forward", "initialization", "linear", "normalization", "probes")
]
CHECKED += [f"verify.training.{name}" for name in ("corpus", "loop", "mesh", "optimizer", "telemetry")]
with install_import_hook([*CHECKED, "models.transformer", "verify.measurement"], "beartype.beartype"):
    import models
    import verify.measurement.jacobian
    import verify.training.loop

import hypothesis  # noqa: E402 - the hook must stand before any import of the packages it checks
import jax  # noqa: E402

assert models and verify

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
