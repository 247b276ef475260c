"""What the tests of the pure core share: only how Hypothesis runs. They need no fixture, no service and no clock."""

from __future__ import annotations

from hypothesis import settings

# No deadline: a pause of the machine would fail a property that holds. No database: a failure prints how to reproduce it, and
# nothing is kept between runs.
settings.register_profile("core", deadline=None, database=None, print_blob=True)
settings.load_profile("core")
