"""The words of a text against what Lucene's analyzers make of it, by hand."""

import re
import unicodedata

from drhard.words import split, split_code, stem

import pytest


def test_names_in_source_code_are_split_into_words() -> None:
    text = "HTTPServer.get_value2(self.maxLen, __init__, x:int, 1.5, v2Name, e.g. it's)"
    assert " ".join(split_code(text)) == "http server get value2 self max len init x int 1.5 v2 name e g it"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What's vitamin K?", "what vitamin k"),
        ("Earth's Earth’s EARTH'S Earth＇s dogs'", "earth earth earth earth dogs"),
        ("don't O’Brien rock'n'roll 'quoted'", "don't o'brien rock'n'roll quoted"),
        ("U.S. e.g. www.example.org end. Next", "u.s e.g www.example.org end next"),
        ("1.5 1,000.25 3;4 12:30 1. 2, x.1 1.x", "1.5 1,000.25 3;4 12 30 1 2 x 1 1 x"),
        ("3D B2B a_b __init__ ___ _ $5 50% C++ C# m²", "3d b2b a_b __init__ 5 50 c c m"),
        ("world-class and/or a:b x·y", "world class and or a:b x·y"),
        ("naïve ÉCOLE Straße Ωmega ﬁn", "naïve école straße ωmega ﬁn"),
        ("cafe\u0301 A\u030angstro\u0308m co\u00adop", "café ångström co\u00adop"),
        ('हिन्दी भाषा বাংলা தமிழ் صَبَاح شُكْرًا עִבְרִית צה"ל', 'हिन्दी भाषा বাংলা தமிழ் صَبَاح شُكْرًا עִבְרִית צה"ל'),
        ("Tree\u200btrunk a\u00a0b c\u3000d", "tree trunk a b c d"),
        ("𝐀𝐁 𐐀𐐁 😀 ½ ①", "𝐀𝐁 𐐨𐐩"),
        ("", ""),
        ("?! — … 。、", ""),
    ],
)
def test_words_are_those_of_unicodes_rules(text: str, words: str) -> None:
    assert split(text) == unicodedata.normalize("NFC", words).split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("我爱北京", "我爱 爱北 北京"),
        ("東京都の人口は1,400万人です。", "東京 京都 都の の人 人口 口は 1,400 万人 人で です"),
        ("東京・大阪、京", "東京 大阪 京"),
        ("コーヒーabcコ", "コー ーヒ ヒー abc コ"),
        ("한국어 문장 K팝", "한국 국어 문장 k 팝"),
        ("ｶﾞｷﾞ ＡＢＣ　１２．５％", "ガギ abc 12.5"),
        ("𠀀𠀁字 人々 〇", "𠀀𠀁 𠀁字 人々 〇"),
        ("葛\U000e0100飾区", "葛\U000e0100飾 飾区"),
        ("ง่าย ไทย๕๐", "ง่า าย ไท ทย ๕๐"),
        ("ພາສາ", "ພາ າສ ສາ"),
        ("ភាសា", "ភាសា"),
        ("မြန်မာ", "မြန် န်မာ"),
        ("カ\u3099ラス", "ガラ ラス"),
    ],
)
def test_scripts_without_blanks_become_pairs(text: str, words: str) -> None:
    assert split(text) == words.split()


def test_ascii_is_split_as_the_same_among_other_letters() -> None:
    texts = [
        "The U.S. won't pay $1,000.50 to a_b's x:y; 3D, e.g. _foo_ '90s 2.x x.2 --a''b-- 1:2 a.b.c 1..2",
        "a'1 1'2 _'_",
    ]
    for text in texts:
        assert split(f"{text} é") == [*split(text), "é"]


def test_words_are_left_whole_by_whatever_stands_around_them() -> None:
    for blank in ' \t\n\u00a0\u2003\u3000\u200b!?()[]"“”«»—/-、。':
        assert split(f"{blank}star{blank}über{blank}") == ["star", "über"], blank


def test_stems() -> None:
    assert [stem(word) for word in ["stars", "starring", "us", "is", "k", "vitamins", "東京", "don't"]] == (
        ["star", "star", "us", "is", "k", "vitamin", "東京", "don't"]
    )
    assert all(re.fullmatch("[a-z]+", stem(word)) for word in ["relational", "hopping", "conditional"])
