"""`python -m endprompt` and `torchrun -m endprompt`."""

from endprompt.cli import main
from endprompt.io.jobs import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    main()
