"""The command `customdiff`: the library's commands, and those that also speak to the server."""

from customdiff_core.cli.app import app
from deployments.forget import forget

app.command()(forget)

if __name__ == "__main__":
    app()
