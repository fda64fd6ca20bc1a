"""The paper's table, measured: what is compared (protocol, rows, cells), measured (measure) and concluded (summary, claims).

protocol.py   what is compared, as data          measure.py    one cell: train, draw, score
rows.py       the rows and the paper's figures   costs.py      seconds, memory, bytes, share of weights
cells.py      the night's list of work           tabulate.py   the night's table, with all nights before
summary.py    figures and differences            claims.py     sentences with verdicts
drift.py      the nights' control chart          report.py     the page
"""
