import pytest

from synthjax.verify import pool


@pytest.fixture(scope="module")
def judge():
  with pool.Pool() as judge:
    yield judge
