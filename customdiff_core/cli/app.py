"""The commands of `customdiff`.

customdiff train cat dog --joint          customdiff compose cat dog teddybear.bin --token "<teddy>" --category "teddy bear"
customdiff generate cat "a crying {}"     customdiff convert cat delta.bin --to authors
customdiff inspect delta.bin              customdiff compress cat --megabytes 1
customdiff evaluate cat                   customdiff table openmoji-nightly --page page.md
customdiff lay-out dataset.json dataset_multiconcept.json
customdiff new my-cat cat photos/*.jpg    customdiff tidy
"""

import typer

from customdiff_core.cli.benchmarking import table
from customdiff_core.cli.files import compress, convert, inspect
from customdiff_core.cli.folders import lay_out, new
from customdiff_core.cli.generating import generate
from customdiff_core.cli.tidying import tidy
from customdiff_core.cli.training import compose, evaluate, train

app = typer.Typer(help="Teach a text-to-image model concepts, merge them, draw them.", no_args_is_help=True)
for command in (new, train, compose, generate, convert, compress, inspect, evaluate, table, tidy):
    app.command()(command)
app.command("lay-out")(lay_out)
