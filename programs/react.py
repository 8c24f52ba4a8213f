"""An agent that reasons and acts by turns: ReAct (Yao et al., 2023).

What is computed, and when: the examples once; then the model's tokens as it samples them, and what a tool found with
the beginning of the next thought, in one batch. The tools are functions in this file, awaited here, beside the model:
nothing travels, and nothing is read twice. Stop strings stay in the file (`include_stop`), so not even they are
computed again: at the end the file holds exactly as many tokens as were computed for it.

Each line of the task is a question. The program puts them before the model one by one, as its thoughts; when none is
left the model thinks for itself, until it gives its final answer or has used up its steps.
"""

import ast
import operator
import re
from collections.abc import Awaitable, Callable
from typing import Any

import sdk
from sdk import KVFile, kv

EXAMPLES = """\
Answer with these tools:
calculate[expression] works out arithmetic
search[question] finds a fact

Thought: How many legs does a cat have?
Action: search[legs of a cat]
Observation: 4
Thought: What is 12 * 4?
Action: calculate[12 * 4]
Observation: 48
Thought: I know the answer.
Final Answer: 48

Thought: What is 96 / 3?
Action: calculate[96 / 3]
Observation: 32
Thought: What is 50 - 32?
Action: calculate[50 - 32]
Observation: 18
Thought: I know the answer.
Final Answer: 18

Thought: What is the capital of Italy?
Action: search[capital of Italy]
Observation: Rome
Thought: I know the answer.
Final Answer: Rome

"""
TASK = "What is 17 * 23?\nWhat is 391 - 91?\nWhat is the capital of France?\nWhat is 300 / 12?\nWhat is 25 ** 2?"
OBSERVATION, ANSWER = "Observation:", "Final Answer:"


async def main(task: str = TASK, steps: int = 5, max_tokens: int = 64) -> dict[str, Any]:
    """The agent's answer, how many tools it called, and the tokens computed on the way."""
    questions = [line.strip() for line in task.splitlines() if line.strip()]
    tool_calls, observed = 0, ""
    async with await kv.prompt(EXAMPLES) as file:
        for step in range(steps):
            thought = f"Thought: {questions[step]}\n" if step < len(questions) else "Thought:"
            said = await say(file, observed, thought, max_tokens)
            if ANSWER in said:
                break
            called, result = await act(said)
            tool_calls += called
            observed = f" {result}\n" if said.endswith(OBSERVATION) else f"\n{OBSERVATION} {result}\n"
            await sdk.emit(observed)
        else:
            said = await say(file, observed, f"Thought: I know the answer.\n{ANSWER}", max_tokens)
        file_tokens = (await file.stat()).n_tokens
    usage = await sdk.rusage()
    return {
        "answer": said.partition(ANSWER)[2].strip(),
        "tool_calls": tool_calls,
        "file_tokens": file_tokens,
        "computed_tokens": usage.n_prompt_tokens + usage.n_generated_tokens,
    }


async def say(file: KVFile, observed: str, beginning: str, max_tokens: int) -> str:
    """Let the model read what was observed and go on from `beginning`, until it wants another observation or is done.
    Returns what it was to begin with, and said."""
    prompt, stop = observed + beginning, [OBSERVATION, "\n\n"]
    text = await file.text(prompt=prompt, max_tokens=max_tokens, stop=stop, include_stop=True)
    await sdk.emit(beginning + text)
    return beginning + text


async def act(said: str) -> tuple[bool, str]:
    """Call the tool that the model asks for. Returns whether there was one, and what to tell the model."""
    action = re.search(r"Action:\s*(\w+)\[(.*?)\]", said)
    if action is None:
        return False, "that was no action; write: Action: tool[input]"
    name, argument = action.groups()
    if name not in TOOLS:
        return False, f"there is no tool {name}; there are {' and '.join(TOOLS)}"
    try:
        return True, await TOOLS[name](argument)
    except (ArithmeticError, LookupError, ValueError) as e:
        return True, f"error: {e}"


# --- the tools --------------------------------------------------------------------------------------------------

OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}


async def calculate(expression: str) -> str:
    """Arithmetic, and nothing else that Python could do."""
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError:
        raise ValueError(f"{expression!r} is no arithmetic") from None
    return f"{evaluate(tree.body):.12g}"


def evaluate(node: ast.AST) -> float:
    """The value of an expression of numbers. Floats throughout, so a huge power overflows instead of taking hours."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](evaluate(left), evaluate(right))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return OPERATORS[type(op)](evaluate(operand))
        case _:
            raise ValueError("only numbers and + - * / ** can be worked out")


FACTS = {"capital france": "Paris", "capital japan": "Tokyo", "legs spider": "8", "legs ant": "6", "water boils": "100"}


async def search(question: str) -> str:
    """The fact all words of whose name are in the question."""
    words = set(re.findall(r"\w+", question.lower()))
    for name, fact in FACTS.items():
        if words.issuperset(name.split()):
            return fact
    raise LookupError(f"nothing is known about {question}")


TOOLS: dict[str, Callable[[str], Awaitable[str]]] = {"calculate": calculate, "search": search}
