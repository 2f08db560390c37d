"""`python -m zcrpc.lab.explore`: every check of the explorer; exit status 1 if one is not as expected."""

import sys

from zcrpc.lab.explore.check import check_all


def main() -> int:
    """Runs every check and prints it. 1 if one fails."""
    failed = 0
    for check in check_all():
        failed += not check.as_expected
        print(
            f"{'ok ' if check.as_expected else 'BAD'} {check.title}: {check.states} states; {check.found or 'nothing'}"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
