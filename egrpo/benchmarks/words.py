"""Words of image descriptions by what they do in a sentence; the rules that stand in for spaCy know no others.

Ambiguous words stand where descriptions use them most. Regular forms in -ing, -ed and -ly are told by their endings.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words(
    """
    a an the this that these those my your his her its our their some any each every no another both several many
    few one two three four five six seven eight nine ten
    """
)
PRONOUNS = _words(
    """
    i you he she it we they me him us them who which what someone something everyone everything anyone nothing
    himself herself itself themselves others
    """
)
AUXILIARIES = _words(
    """
    is are was were be been being am has have had do does did can could will would should may might must
    """
)
# Prepositions, conjunctions, adverbs that stand between phrases.
BOUNDARIES = _words(
    """
    about above across after against along amid among around as at before behind below beneath beside besides
    between beyond but by despite down during for from if in inside into like near next not of off on onto or out
    outside over past since so than then there through throughout to toward towards under underneath until up upon
    upside when where while with within without and because although though yet also just only too very again alike
    apart aside away back forth forward inward outward upward downward together even ever never always often once
    soon here now most more less better instead else indoors outdoors overhead nearby how why all
    """
)
# Forms that no ending tells; those that name things as often (play, shape, light) are left out.
VERBS = _words(
    """
    adds attend await began begin blew bore bounces brew bring brings broke brought build builds built burn burns
    came carries carry catches caught chase chases chose clad click come comes contain contains creates cuts
    decorate decorates dig digs draw drew drove eat eats enjoy enjoys feel fell felt fetch fill fills flew float
    flow flows flutter gain gave get gets give gives gleam glide glisten glow glows go goes grew grow grows hang
    hangs held hide hides hold holds hung illuminate join joins keep keeps kept knew lay leads leans learn learns
    leave led left let lets lie lies lines linger lit looks lost made make makes met pay perform performs prepare
    provide provides rang reaches read reads reflect remain remains remove rests reveal reveals rises roar run runs
    sang sank sat say says see seem seems sees sell sells sent serve serves sets shines shone shook sing sings sit
    sits sleep sleeps slept slid soar spoke spread spun stand stands stay stays steals stirs stood struck support
    surround swam sway sways swim swims swung take takes talks taught tell tells tend threw throw throws ticks
    tighten told took tore try unlock unlocks uses wait waits walks was wear wears went win wins woke won wore works
    wound wove write writes wrote
    """
)
ADJECTIVES = _words(
    """
    red orange yellow green blue purple pink brown black white gray grey beige tan gold silver golden teal turquoise
    violet maroon navy cyan magenta crimson dark light pale bright vivid clear opaque translucent transparent
    colorful big small large little tiny huge tall short long wide narrow thin thick slim slender deep shallow high
    low flat steep vast mini massive giant round square rectangular triangular circular oval oblong spherical cubic
    conical cylindrical pyramidal pentagonal hexagonal octagonal diamond teardrop angular curved pointed pointy
    jagged abstract geometric wooden metallic plastic fluffy furry fuzzy ceramic stainless plush woolen soft hard
    rough smooth bumpy shiny glossy matte dull sharp blunt crisp crunchy creamy buttery sticky prickly thorny rocky
    sandy mossy grassy leafy weedy icy snowy frosty steamy misty foggy cloudy sunny starry rainy windy stormy sunlit
    moonlit candlelit hot cold warm cool chilly wet dry damp humid fresh frozen ripe juicy sweet sour bitter savory
    spicy tangy zesty tart delicious rich old new young ancient antique modern vintage contemporary historic rustic
    rusty dusty dirty clean neat messy empty full open busy crowded bustling quiet loud silent noisy calm peaceful
    serene tranquil gentle fierce wild tame lively happy sad angry cheerful joyful playful friendly lazy sleepy
    tired hungry thirsty proud curious strong weak sturdy fragile delicate heavy lightweight powerful fast slow
    swift quick elegant fancy simple plain ornate intricate elaborate sleek stylish fashionable luxurious cozy
    comfortable beautiful pretty lovely cute adorable handsome gorgeous stunning majestic grand magnificent amazing
    exotic unique special famous popular favorite perfect good great best better bad important different similar
    same other single double whole entire local national urban rural tropical natural outdoor indoor nearby distant
    far near electronic electric digital virtual visual magic mystical hypnotic heady vibrant lush verdant dense
    barren bare spacious ominous haunting fragrant aromatic melodic rhythmic harmonic dynamic dramatic gaudy festive
    formal casual professional personal private public scenic seasonal aerodynamic streamlined treacherous winding
    towering sparkling shimmering glowing blooming breathtaking refreshing bold velvety ready worn torn broken
    stuffed
    """
)
# Nouns that an ending would tell wrongly.
NOUNS = _words(
    """
    table tables vegetable cable stable fable butterfly family fly lily jelly belly bully trolley valley alley july
    painting building earring ring morning evening ceiling clothing wedding opening string king wing swing thing
    railing pudding icing frosting topping lightning awning dressing crossing drawing stocking duckling dumpling
    spring sling sibling sterling seasoning feeling meaning warning carving landing parking lettering bed shed sled
    seed weed feed reed steed breed dish fish radish polish finish relish brush bush offspring darling sapling
    seedling herring bling bearing fishing mouthful handful spoonful armful
    """
)
PLURALS_IN_COMPOUNDS = _words("christmas sports clothes glass dress bus lens canvas")
AFTER_NOUNS = _words("light orange square")  # "a traffic light"
ADJECTIVE_ENDINGS = ("ous", "ful", "less", "ical", "able", "ible", "ish", "esque")
