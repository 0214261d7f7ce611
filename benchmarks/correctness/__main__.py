"""`python -m benchmarks.correctness`: the same as `python -m benchmarks correctness`."""

from benchmarks.correctness import main

if __name__ == "__main__":
    main()
