"""`python -m cdep_run.evidence`."""

from cdep_run.evidence import main

main()
