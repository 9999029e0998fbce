"""Run the ``sb3-trpo`` command: ``python -m sb3_trpo``."""

import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> int:
    """Run the command line.

    :return: exit status, also where Ctrl-C comes while the packages are being imported
    """
    try:
        from sb3_trpo.zoo import commands

        return commands.main()
    except KeyboardInterrupt:
        print("sb3-trpo: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
