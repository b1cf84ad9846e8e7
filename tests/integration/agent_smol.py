"""The agent of test_agent.py: smolagents' CodeAgent, told to mend the program in its working directory.

Arguments: the model's base URL. Everything it does besides talking to the model is code that the model wrote.
"""

import sys

from smolagents import CodeAgent, OpenAIServerModel

TASK = "total.py prints the wrong sum for numbers.txt. Mend it, check it by running it, and answer with what it prints."


def main() -> None:
    model = OpenAIServerModel(model_id="fake-model", api_base=sys.argv[1], api_key="no-key")
    agent = CodeAgent(
        tools=[],
        model=model,
        additional_authorized_imports=["pathlib", "subprocess", "os"],
        max_steps=8,
        verbosity_level=0,
    )
    print("answer:", agent.run(TASK))


if __name__ == "__main__":
    main()
