"""The fault campaign: runs that are killed, stopped, cut off from their store or lied to, and what is left of them.

    python -m tests.faults [SEED …]    all seeds, or these; a table, and one line of JSON at the end

seams.py      the steps of a run, and what may strike there
driver.py     forks the drivers, on a Ray or (threads.py) on threads in its place
fleet.py      the drivers as the campaign sees them
proxy.py      S3 that is slow, away, or loses answers
world.py      places, corpora and tables, read by the campaign itself
scene.py      one corpus, one output, and the runs over it
texts.py      what the corpora are made of
disk.py       a small disk
cluster.py    a Ray that scenes share, whose workers fail, too (hook/)
kind.py       a kind of fault, and the list of them: kinds.py imports kinds_*.py
checker.py    what must hold, I1 to I6
mutations.py  safeguards, and how to take them out
campaign.py   seeds to scenes, and the table
"""
