"""Research a topic with a language model: plan questions, search them in parallel, criticize, go on until nothing is missing.

    plan --a Send for each question--> search --> critique --nothing is missing--> write
                                         ^------ a Send for each gap ------'

    export OPENAI_API_KEY=...                           # not needed where the endpoint asks for none
    export OPENAI_BASE_URL=http://localhost:11434/v1    # anything with /chat/completions; default https://api.openai.com/v1
    export OPENAI_MODEL=llama3.2                        # default gpt-4o-mini

    lockstep run docs/examples/research.py:graph --input '{"topic": "Why are some tides higher than others?"}'

A model answers differently each time, but each answer is recorded, once: a run that goes on after a crash asks only what has no
answer yet. The same answers give the same state, byte for byte, in whatever order they come. The variables are read where a
node runs, so remote workers need them too; the key is never part of the state.
"""

import json
import operator
import os
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Annotated, Any, TypedDict
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from lockstep import END, START, Context, Graph, RetryPolicy, Send

MAX_QUESTIONS = 4
"""Of one round. The prompts say so too, but a model may not listen."""
AS_JSON = 'Answer with JSON alone: {"questions": ["..."]}'
PLAN = f"List at most {MAX_QUESTIONS} questions to answer before writing about this topic, each clear on its own. {AS_JSON}"
SEARCH = "Answer this question in at most 5 sentences of facts that can be checked. Say what you do not know."
CRITIQUE = f"List at most {MAX_QUESTIONS} questions on this topic that the notes leave open; none, if they suffice. {AS_JSON}"
WRITE = "Write about this topic, in at most 200 words, from these notes alone. Say what they leave open."
REPLY_SECONDS = 120
"""How long the endpoint may be silent: less than a node may run, which is 300 seconds."""


class Note(TypedDict):
    question: str
    finding: str


@dataclass
class State:
    topic: str
    max_rounds: int = 3
    rounds: Annotated[int, operator.add] = 0  # Of searching, that are done.
    questions: list[str] = field(default_factory=list)  # Of the next round; none: write.
    notes: Annotated[list[Note], operator.add] = field(default_factory=list)  # In the order of the questions.
    answer: str = ""


class EndpointError(Exception):
    """The endpoint refuses what we send: the same again would be refused again."""


class Unanswered(EndpointError):
    """No answer came, or none that can be used: another attempt may bring one."""


graph = Graph(State, name="research")
asks_the_model = graph.node(retry=RetryPolicy(max_attempts=4, initial_seconds=1.0, retry_on=(Unanswered,)))


@asks_the_model
def plan(state: State, ctx: Context) -> dict[str, Any]:
    return {"questions": questions_in(ask(PLAN, {"topic": state.topic}, ctx))}


def search_or_write(state: State) -> list[Send] | str:
    return [Send("search", question) for question in state.questions] or "write"


@asks_the_model
def search(question: str, ctx: Context) -> dict[str, Any]:
    """One note. What the model has read is all that is searched here; put a search engine or your own index in its place."""
    return {"notes": [{"question": question, "finding": ask(SEARCH, {"question": question}, ctx)}]}


@asks_the_model
def critique(state: State, ctx: Context) -> dict[str, Any]:
    """The questions that are still open. After the last round nobody is asked: what is open then stays open."""
    if state.rounds + 1 >= state.max_rounds:
        return {"rounds": 1, "questions": []}
    return {"rounds": 1, "questions": questions_in(ask(CRITIQUE, {"topic": state.topic, "notes": state.notes}, ctx))}


@asks_the_model
def write(state: State, ctx: Context) -> dict[str, Any]:
    return {"answer": ask(WRITE, {"topic": state.topic, "notes": state.notes}, ctx)}


graph.add_edge(START, "plan")
graph.add_conditional_edges("plan", search_or_write, ["search", "write"])
graph.add_edge("search", "critique")
graph.add_conditional_edges("critique", search_or_write, ["search", "write"])
graph.add_edge("write", END)


def ask(task: str, material: dict[str, Any], ctx: Context) -> str:
    """The model's answer. Raises Unanswered for faults that may pass, EndpointError for others; both quote the endpoint."""
    url = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1").rstrip("/") + "/chat/completions"
    content = json.dumps(material, ensure_ascii=False)
    messages = [{"role": "system", "content": task}, {"role": "user", "content": content}]
    request = {"model": os.environ.get("OPENAI_MODEL", "gpt-4o-mini"), "messages": messages}
    # A gateway that knows this header answers a redelivered attempt, whose worker died, from what it has: it is paid for once.
    # It would repeat a bad answer as well, so a new attempt has a new key.
    headers = {"Content-Type": "application/json", "Idempotency-Key": f"{ctx.idempotency_key}-{ctx.attempt}"}
    if key := os.environ.get("OPENAI_API_KEY", "").strip():  # A newline in a header would be an error that quotes the key.
        headers["Authorization"] = f"Bearer {key}"
    status, body = post(Request(url, json.dumps(request).encode(), headers))
    if status != 200:
        may_pass = status in (408, 409, 429) or status >= 500
        raise (Unanswered if may_pass else EndpointError)(f"{url} answered {status}: {body[:300]!r}")
    match json_of(body):
        case {"choices": [{"message": {"content": str(answer)}}, *_], **rest} if answer.strip():
            ctx.emit("completion", {"usage": rest.get("usage")})  # What it cost, for who reads the run's events.
            return answer.strip()
    raise Unanswered(f"{url} answered {status}, but with no completion: {body[:300]!r}")


def post(request: Request) -> tuple[int, str]:
    """The status, whichever it is, and the body. Raises Unanswered where there is none."""
    try:
        try:
            response = urlopen(request, timeout=REPLY_SECONDS)
        except HTTPError as error:
            response = error  # It is a response as well.
        with response:
            return response.status, response.read().decode(errors="replace")
    except (OSError, HTTPException) as error:
        raise Unanswered(f"{request.full_url} does not answer: {error}") from error


def questions_in(answer: str) -> list[str]:
    """The questions of {"questions": [...]}, each once, with whatever a model puts around them. Raises Unanswered."""
    match json_of(answer[answer.find("{") : answer.rfind("}") + 1]):
        case {"questions": [*questions]} if all(isinstance(question, str) for question in questions):
            return list(dict.fromkeys(question.strip() for question in questions if question.strip()))[:MAX_QUESTIONS]
    raise Unanswered(f"""the model was asked for {{"questions": ["..."]}}, but answered {answer[:300]!r}""")


def json_of(text: str) -> Any:
    """The value, or None where the text is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None
