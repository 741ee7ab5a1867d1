"""What pyproject.toml cannot say: a wheel holds data/ inside the package (synthjax/shipped.py)."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=["synthjax*"]), "synthjax.shipped_data"],
  package_dir={"synthjax.shipped_data": "data"},
  package_data={"synthjax.shipped_data": ["**/*"]},
)
