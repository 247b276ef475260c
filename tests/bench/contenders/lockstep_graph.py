"""The graph that Lockstep's coordinator and worker load; the environment tells the shape and its parameters."""

import json
import os

from tests.bench.shapes import SHAPES

from lockstep import END, START, Graph, Send

name, parameters = json.loads(os.environ["BENCH_LOCKSTEP_GRAPH"])
graph = SHAPES[name].build(Graph(SHAPES[name].state, name="bench"), START, END, Send, **parameters)
