"""`python -m bigr_repr_cli`, also what `accelerate launch -m bigr_repr_cli train …` starts."""

from bigr_repr_cli.main import main

main()
