"""`akbox mcp`: the tools of the run that it is in, for an MCP client on its standard streams."""

from __future__ import annotations

import click

from akbox.cli.output import EXIT_CANNOT, Failure


@click.command(short_help="Serve a run's tools to an MCP client over standard input and output.")
def mcp() -> int:
    """Runs inside a run, as its agent: `akbox run -p POLICY -q -- akbox mcp` is the command for an MCP client's
    settings. The client gets the tools that the policy allows, and the authority calls as ak_*."""
    try:
        from authority_nanos import NotUnderAkboxError
    except ImportError as error:
        raise Failure("this is not a run of akbox", fix="akbox run -q -- akbox mcp", exit_code=EXIT_CANNOT) from error
    try:
        from akbox.tools.mcp_server import serve
    except ImportError as error:
        fix = "pip install 'akbox[mcp]', where the run's policy lets it be read"
        raise Failure(f"the package mcp cannot be loaded: {error}", fix=fix, exit_code=EXIT_CANNOT) from error
    try:
        serve()
    except NotUnderAkboxError as error:
        raise Failure(error.message, exit_code=EXIT_CANNOT) from error
    return 0
