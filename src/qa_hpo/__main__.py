"""``python -m qa_hpo`` is ``qa-hpo``."""

from qa_hpo.cli import main

main()
