"""Fixtures of all tests that need no lab."""

from tests.fakes.fixtures import *  # noqa: F403
