"""What the Pallas kernels share."""

import jax
import jax.numpy as jnp

# Stands for minus infinity, which would give NaN as -inf - -inf.
LOWEST = -1e30
# The contracted dimensions of a @ b, a @ b.T and a.T @ b.
AB = ((1,), (0,))
ABT = ((1,), (1,))
ATB = ((0,), (0,))


def product(a, b, contraction):
  """A product of two matrices, accumulated in float32."""
  batch = ((), ())
  return jax.lax.dot_general(a, b, (contraction, batch), preferred_element_type=jnp.float32)
