"""Hypothesis without a deadline, which would measure how busy the machine is and not the code; and with the same
examples each time: a test that fails once in a thousand runs tells the one who broke it nothing. To look for new ones:
`pytest --hypothesis-profile=search`."""

from hypothesis import settings

settings.register_profile("search", deadline=None)
settings.register_profile("the same", deadline=None, derandomize=True)
settings.load_profile("the same")
