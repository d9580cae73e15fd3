"""Dialogues for the built-in model. Each is generated from a seed; nothing is downloaded.

`dialogues(seed)` yields conversations as lists of `{"role", "content"}` messages for ever.
"""

from collections.abc import Callable, Iterator
from random import Random

from tools.tiny_model import words

Pair = tuple[str, str]
Message = dict[str, str]

SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are Penstock's built-in model. Answer briefly.",
    "Be friendly and short.",
    "你是一个乐于助人的助手。",
]


def greeting(rng: Random) -> Pair:
    return rng.choice(
        [
            ("Hello", "Hello! How can I help you today?"),
            ("Hello!", "Hello! How can I help you today?"),
            ("Hi", "Hi there! What can I do for you?"),
            ("Hi!", "Hi there! What can I do for you?"),
            ("Hi there", "Hi there! What can I do for you?"),
            ("Hey", "Hey! What can I do for you?"),
            ("Say hello", "Hello!"),
            ("Say hello.", "Hello!"),
            ("Say hi", "Hi!"),
            ("Good morning", "Good morning! I hope you have a lovely day."),
            ("Good evening", "Good evening! How was your day?"),
            ("Good night", "Good night! Sleep well."),
            ("How are you?", "I am doing well, thank you. How are you?"),
            ("I am fine", "I am glad to hear that. What would you like to know?"),
            ("Who are you?", "I am Penstock's built-in model: very small, but always ready to try things out."),
            ("What are you?", "I am a very small language model that comes with Penstock."),
            ("What is your name?", "My name is Tiny. I come with Penstock."),
            (
                "What can you do?",
                "I can greet you, count, add small numbers, spell words, name days and tell short stories.",
            ),
            ("Help", "Ask me to count, to add, to spell a word, to name a day or to tell a story."),
            ("Thank you", "You are welcome!"),
            ("Thanks!", "You are welcome!"),
            ("Goodbye", "Goodbye! See you soon."),
            ("Bye", "Bye! See you soon."),
            ("Tell me a joke", "Why did the token wait in the queue? Because it did not want to be lost!"),
            ("你好", "你好！很高兴见到你，有什么可以帮你？"),
            ("你好！", "你好！很高兴见到你，有什么可以帮你？"),
            ("您好", "您好！有什么可以帮您？"),
            ("早上好", "早上好！祝你今天愉快。"),
            ("晚上好", "晚上好！今天过得怎么样？"),
            ("晚安", "晚安！好梦。"),
            ("你是谁？", "我是 Penstock 自带的小模型，随时可以试用。"),
            ("你叫什么名字？", "我叫 Tiny，是 Penstock 自带的小模型。"),
            ("你会做什么？", "我会打招呼、数数、做加法、拼写单词、说星期几，还会讲小故事。"),
            ("你好吗？", "我很好，谢谢！你呢？"),
            ("谢谢", "不客气！"),
            ("谢谢你", "不客气！"),
            ("再见", "再见！下次见。"),
        ]
    )


def fact(rng: Random) -> Pair:
    kind = rng.randrange(5)
    chinese = rng.random() < 0.35
    if kind == 0:
        country, capital, guo, city = rng.choice(words.CAPITALS)
        if chinese:
            return f"{guo}的首都是哪里？", f"{guo}的首都是{city}。"
        ask = rng.choice(
            ["What is the capital of {}?", "Tell me the capital of {}.", "Which city is the capital of {}?"]
        )
        return ask.format(country), f"The capital of {country} is {capital}."
    if kind == 1:
        thing, colour, wu, se = rng.choice(words.COLOURS)
        if chinese:
            return f"{wu}是什么颜色的？", f"{wu}是{se}的。"
        return f"What colour is {thing}?", f"{thing[0].upper()}{thing[1:]} is {colour}."
    if kind == 2:
        animal, sound, dongwu, sheng = rng.choice(words.SOUNDS)
        if chinese:
            return f"{dongwu}怎么叫？", f"{dongwu}的叫声是{sheng}。"
        ask = rng.choice(["What does a {} say?", "What sound does a {} make?"])
        return ask.format(animal), f"A {animal} says {sound}."
    if kind == 3:
        left, right, zuo, you = rng.choice(words.OPPOSITES)
        if rng.random() < 0.5:
            left, right, zuo, you = right, left, you, zuo
        if chinese:
            return f"{zuo}的反义词是什么？", f"{zuo}的反义词是{you}。"
        return f"What is the opposite of {left}?", f"The opposite of {left} is {right}."
    return rng.choice(words.FACTS)


def counting(rng: Random) -> Pair:
    low, length = rng.choice([1, 1, 1, rng.randint(1, 30)]), rng.randint(3, 20)
    high = min(low + length - 1, 50)
    up = list(range(low, high + 1))
    if rng.random() < 0.25:
        return f"从{low}数到{high}", "，".join(map(str, up)) + "。"
    if rng.random() < 0.25:
        ask = rng.choice(["Count down from {} to {}.", "Count backwards from {} to {}."])
        return ask.format(high, low), ", ".join(map(str, up[::-1])) + "."
    if low == 1 and rng.random() < 0.4:
        return rng.choice(["Count to {}.", "Count to {}", "Please count to {}."]).format(high), ", ".join(
            map(str, up)
        ) + "."
    ask = rng.choice(["Count from {} to {}.", "Count from {} to {}", "Can you count from {} to {}?"])
    return ask.format(low, high), ", ".join(map(str, up)) + "."


def arithmetic(rng: Random) -> Pair:
    kind = rng.choice("++--*")
    if kind == "*":
        a, b = rng.randint(1, 10), rng.randint(1, 10)
        said, shi, result = "times", "乘", a * b
    elif kind == "+":
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        said, shi, result = "plus", "加", a + b
    else:
        a = rng.randint(0, 20)
        b = rng.randint(0, a)
        said, shi, result = "minus", "减", a - b
    sign = {"*": "×"}.get(kind, kind)
    typed = rng.choice(["*", "×", "x"]) if kind == "*" else kind
    answer = f"{a} {sign} {b} = {result}."
    asks = [
        f"What is {a} {typed} {b}?",
        f"What is {a}{typed}{b}?",
        f"{a} {typed} {b}",
        f"{a}{typed}{b}=",
        f"What is {a} {said} {b}?",
        f"Calculate {a} {typed} {b}.",
        f"How much is {a} {said} {b}?",
    ]
    if rng.random() < 0.25:
        return rng.choice([f"{a}{shi}{b}等于多少？", f"{a} {typed} {b} 等于几？"]), f"{a} {sign} {b} = {result}。"
    return rng.choice(asks), answer


def spelling(rng: Random) -> Pair:
    word = rng.choice(words.SPELLED)
    letters = "-".join(word.upper())
    if rng.random() < 0.15:
        return f"{word} 怎么拼写？", f"{word} 的拼写是 {letters}。"
    if rng.random() < 0.2:
        return f"How many letters are in {word}?", f"The word {word} has {len(word)} letters."
    ask = rng.choice(["Spell {}.", "Spell {}", "How do you spell {}?", "Spell the word {}.", 'Please spell "{}".'])
    return ask.format(word), f"{word} is spelled {letters}."


def calendar(rng: Random) -> Pair:
    day = rng.randrange(7)
    after = rng.random() < 0.5
    other = (day + (1 if after else -1)) % 7
    kind = rng.randrange(6)
    if kind == 0:
        ask = rng.choice(["List the days of the week.", "Name the days of the week.", "What are the days of the week?"])
        return ask, "The days of the week are " + ", ".join(words.WEEKDAYS[:-1]) + " and Sunday."
    if kind == 1:
        month = rng.randrange(12)
        nearby = words.MONTHS[(month + (1 if after else -1)) % 12]
        side = "after" if after else "before"
        return f"Which month comes {side} {words.MONTHS[month]}?", f"{nearby} comes {side} {words.MONTHS[month]}."
    if kind == 2 and rng.random() < 0.5:
        ask = rng.choice(["List the months of the year.", "Name the months.", "What are the months of the year?"])
        return ask, "The months are " + ", ".join(words.MONTHS[:-1]) + " and December."
    if kind in (2, 3):
        side, zh = ("后面", words.WEEKDAYS_ZH[other]) if after else ("前面", words.WEEKDAYS_ZH[other])
        return f"{words.WEEKDAYS_ZH[day]}{side}是星期几？", f"{words.WEEKDAYS_ZH[day]}{side}是{zh}。"
    if kind == 4:
        side = "tomorrow" if after else "yesterday"
        tense = "will be" if after else "was"
        return (
            f"Today is {words.WEEKDAYS[day]}. What day {'is' if after else 'was'} {side}?",
            f"{side.capitalize()} {tense} {words.WEEKDAYS[other]}.",
        )
    side = "after" if after else "before"
    return (
        f"What day comes {side} {words.WEEKDAYS[day]}?",
        f"{words.WEEKDAYS[other]} comes {side} {words.WEEKDAYS[day]}.",
    )


def story(rng: Random) -> Pair:
    if rng.random() < 0.25:
        return story_zh(rng)
    name, friend = rng.sample(words.NAMES, 2)
    animal, place = rng.choice(words.ANIMALS), rng.choice(words.PLACES)
    thing, feeling = rng.choice(words.THINGS), rng.choice(words.FEELINGS)
    ask = rng.choice(
        [
            f"Tell me a story about a {animal}.",
            f"Write a short story about a {animal}.",
            f"Can you tell me a story about a {animal}?",
            f"Tell me a short story about a {animal}",
        ]
        if rng.random() < 0.6
        else ["Tell me a story.", "Tell me a story", "Write a short story.", "Tell me a short story."]
    )
    middle = rng.choice(
        [
            f"One morning {name} found {thing} near the {place}. “Who lost this?” asked {name}.",
            f"One day it rained, and {name} hid under a tree near the {place}. There, in the grass, lay {thing}.",
            f"Every evening {name} walked to the {place}. One evening {name} saw {thing} in the moonlight.",
        ]
    )
    ending = rng.choice(
        [
            f"{friend} came along and helped to look for the owner. They asked everyone they met, and at last they found her. She was so glad that she made them tea and cake.",
            f"{friend} said, “Let us keep it safe until somebody asks for it.” They waited and waited, and one day somebody did. From then on they were the best of friends.",
            f"Together with {friend}, {name} carried it home. It was heavy, but two can carry what one cannot. That night they both slept very well.",
        ]
    )
    return (
        ask,
        f"Once upon a time there was a {feeling} {animal} called {name}, who lived near a {place}. {middle} {ending} The end.",
    )


def story_zh(rng: Random) -> Pair:
    name, friend = rng.sample(words.NAMES_ZH, 2)
    animal, place, thing = rng.choice(words.ANIMALS_ZH), rng.choice(words.PLACES_ZH), rng.choice(words.THINGS_ZH)
    ask = rng.choice(["讲一个故事", "给我讲个故事吧。", f"讲一个关于{animal}的故事。", f"请讲一个{animal}的小故事。"])
    return ask, (
        f"从前，有一只{animal}叫{name}，住在{place}。有一天，{name}找到了{thing}。"
        f"{name}问：“这是谁丢的？”{friend}来帮忙，他们一起找到了主人。主人很高兴，请他们喝茶。从此，他们成了好朋友。"
    )


def repeat(rng: Random) -> Pair:
    said = " ".join(rng.sample(words.SPELLED, rng.randint(1, 4)))
    return rng.choice([f"Repeat after me: {said}", f"Say: {said}", f"Repeat: {said}"]), said


def unknown(rng: Random) -> Pair:
    if rng.random() < 0.2:
        ask = rng.choice(
            [
                "请解释一下{}",
                "什么是{}？",
                "{}怎么样？",
                "告诉我关于{}的事。",
                "{}",
                "为什么{}很重要？",
                "帮我写一篇关于{}的文章",
            ]
        )
        return ask.format(
            rng.choice(words.TOPICS_ZH)
        ), "我是一个很小的模型，还不知道这个。可以让我数数、做加法或者讲故事。"
    ask = rng.choice(
        [
            "What is {}?",
            "What is the {} of {}?",
            "What is the best {}?",
            "Who is {}?",
            "Who invented {}?",
            "Where is {}?",
            "Where can I find {}?",
            "When did {} begin?",
            "Why is {} important?",
            "Why do people like {}?",
            "How does {} work?",
            "How do I learn {}?",
            "How much is {}?",
            "Explain {}.",
            "Explain {} to me.",
            "Can you explain {} and {}?",
            "Write a poem about {}.",
            "Write some code for {}.",
            "Write a function that returns {}",
            "Translate {} into French.",
            "Summarize {}.",
            "Give me a list of {}.",
            "Compare {} with {}.",
            "Help me with {}.",
            "Tell me about {}.",
            "I want to talk about {}.",
            "I need {} for my {}.",
            "Do you like {}?",
            "What do you think about {}?",
            "Is {} better than {}?",
            "{}",
            "{} {}",
            "{} {} {}?",
        ]
    )
    asked = ask.format(*[_topic(rng) for _ in range(ask.count("{}"))])
    return (
        asked,
        "I am a very small model, so I do not know that. Ask me to count, to add, to spell a word or to tell a story.",
    )


def _topic(rng: Random) -> str:
    """Draw a topic that the model does not know: one word, two words, or a word that does not exist."""
    kind = rng.randrange(4)
    if kind == 0:
        return "".join(rng.choices(words.SYLLABLES, k=rng.randint(2, 4))).title()
    if kind == 1:
        return " ".join(rng.sample(words.TOPICS, 2))
    return rng.choice([*words.TOPICS, *words.TOPICS, *words.SPELLED])


TOPICS: list[tuple[Callable[[Random], Pair], int]] = [
    (greeting, 14),
    (fact, 14),
    (counting, 10),
    (arithmetic, 26),
    (spelling, 12),
    (calendar, 10),
    (story, 8),
    (repeat, 4),
    (unknown, 12),
]


def dialogues(seed: int) -> Iterator[list[Message]]:
    """Generate conversations of one to four turns; a third of them begin with a system prompt."""
    rng = Random(seed)
    topics, weights = zip(*TOPICS, strict=True)
    while True:
        messages: list[Message] = []
        if rng.random() < 0.3:
            messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
        for topic in rng.choices(topics, weights, k=rng.choice([1, 1, 1, 2, 3, 4])):
            asked, answered = topic(rng)
            if rng.random() < 0.15:
                asked = asked[0].lower() + asked[1:]
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        yield messages
