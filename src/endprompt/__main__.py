"""`python -m endprompt` and `torchrun -m endprompt`."""

from endprompt.cli import main

if __name__ == "__main__":
    main()
