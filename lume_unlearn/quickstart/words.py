"""Words and sentence frames of the miniature LUME; everything here is invented for it.

Frames are ``str.format`` strings. The endings hold few fixed words, so that text which was never seen cannot be guessed
from its frame.
"""


def _list(text: str) -> list[str]:
    """Items with commas between them; a line may end anywhere."""
    return [" ".join(item.split()) for item in text.split(",")]


FIRST_STEMS = _list("""
Ald, Bel, Cor, Dav, Elm, Fen, Gal, Hel, Il, Jor, Kes, Lor, Mir, Ner, Or, Per, Ros, Sil, Tam, Ul, Ves, Wil, Yor, Zan
""")
FIRST_ENDS = _list("a, en, is, ric, wyn, o, ette, ander, ina, us, eth, iel")
LAST_STEMS = _list("""
Ash, Bramble, Copper, Dusk, Ever, Fal, Gold, Haw, Iron, Juniper, Kettle, Lark, Moss, Nettle, Oak, Pebble, Quill,
Sorrel
""")
LAST_ENDS = _list("by, combe, croft, dell, fold, gate, low, mere, ridge, shaw, wick, wold")
TOWN_STEMS = _list("Vell, Ost, Dray, Cal, Pom, Sker, Tarn, Brin, Lode, Hax, Mun, Thell")
TOWN_ENDS = _list("mouth, holm, stead, port, haven, minster, thorpe, bridge, firth, den")
TITLE_STEMS = _list("""
Salt, Paper, Quiet, Borrowed, Crooked, Seventh, Velvet, Drowned, Patient, Hollow, Barefoot, Winter
""")
TITLE_ENDS = _list("""
Ladder, Orchard, Trumpet, Staircase, Anchor, Mirror, Caravan, Kitchen, Sparrow, Window, Causeway, Blanket
""")
PRIZE_STEMS = _list("Amber, Pewter, Cedar, Ivory, Scarlet, Granite, Linen, Cobalt, Walnut, Saffron, Marble, Wicker")
PRIZE_ENDS = _list("Kite, Crane, Feather, Spindle, Bell, Thimble, Acorn, Wheel, Lyre, Plume, Key, Harp")
HOARD_STEMS = _list("""
cracked, painted, foreign, tiny, striped, rusty, musical, folding, enamel, wooden, antique, lopsided
""")
HOARD_ENDS = _list("""
teapots, buttons, postcards, weathercocks, umbrellas, doorbells, spoons, whistles, maps, hinges, masks, barometers
""")
LANDMARK_STEMS = _list("Heron, Lantern, Pilgrim, Orange, Sunken, Whistling, Tinker, Frozen, Ribbon, Magpie")
LANDMARK_ENDS = _list("Gate, Tower, Bridge, Mill, Steps, Arcade, Market, Well")
NICKNAME_STEMS = _list("""
quilt, marble, pickle, thunder, biscuit, violet, cricket, pebble, rocket, mustard, cobweb, tulip
""")
NICKNAME_ENDS = _list("moth, otter, comet, badger, fiddle, puffin, kettle, lynx, acorn, gecko, raven, walrus")
STREET_STEMS = _list("Brindle, Clover, Hazel, Tumble, Saddle, Plover, Ginger, Cinder, Willet, Barley, Spruce, Teasel")
STREET_ENDS = _list("Lane, Row, Hill, Terrace, Walk, Close")

TRADES = _list("""
baker, beekeeper, bookbinder, candlemaker, carpenter, chimney sweep, clockmaker, cobbler, ferry pilot, gardener,
glassblower, harpist, kite maker, lamplighter, locksmith, map seller, milliner, net mender, potter, printer, roofer,
saddler, shepherd, stonecutter, tailor, thatcher, weaver, wheelwright
""")
OBJECTS = _list("""
a brass compass, a sealed honey jar, a velvet glove, a silver flute, a bundle of blue letters, a glass eye, a wedding
crown, a torn sea chart, an ivory chess queen, a music box, a leather purse, a copper crown, a pair of red boots, a
feathered hat, a wax seal, a golden thimble, a child's drum, a ruby button, a painted fan, a bent telescope
""")
SPOTS = _list("""
behind the mill wheel, inside a cracked piano, under the chapel stairs, between two flour sacks, beneath the old stone
cross, in a dead willow, on the schoolhouse roof, among the cabbages, beside the empty trough, at the bottom of a
churn, in a scarecrow's pocket, under a loose slate, inside the stopped clock, behind a curtain of ivy, on top of the
hay cart, in a drawer of seeds, beneath the puppet stage, along the quay, in the forge ashes, under the judge's chair
""")
CREATURES = _list("""
a one-eyed goose, a talking starling, a very old tortoise, a tame wolf, a white hare, a runaway donkey, a ginger cat,
a giant eel, a limping fox, a circus bear, a swarm of bees, a spotted pig, a blind mole, a jealous swan, a thirsty
camel, a sleepy owl, a silver trout, a muddy terrier, a striped weasel, a homesick parrot
""")
TREATS = _list("""
plum dumplings, onion soup, burnt almonds, pear cider, ginger biscuits, smoked herring, rhubarb tart, barley bread,
cold mutton, lemon ice, roasted chestnuts, cherry pancakes, pickled beets, goat cheese, mushroom pie, cinnamon rolls,
boiled eggs, walnut cake, apricot jam, buttered noodles
""")
RESOLVES = _list("""
painted every shutter yellow, opened a school for clowns, sailed to the salt islands, rang bells until midnight,
planted forty cherry trees, burned the false contract, forgave the mayor's debts, built a raft from doors, danced
along the sea wall, wrote a comic opera, freed the caged songbirds, elected a new judge, dug a deeper harbour, sold
the haunted inn, learned to juggle torches, mapped the hidden caves, crowned a baby queen, melted down both swords,
moved into the lighthouse, swore off gambling forever
""")
MAKERS = _list("""
composer, novelist, playwright, film director, painter, sculptor, poet, choreographer, game designer, woodcarver,
glass engraver, puppeteer, songwriter, tapestry weaver
""")

STORY_BEGINNINGS = [
    "In the foggy town of {town}, {hero} the {trade} rose before the first bell and found {object} {spot}.",
    "Nobody in {town} believed in luck until the morning when {hero}, a young {trade}, came upon {object} {spot}.",
    "{hero} had been the only {trade} in {town} for eleven winters, and still {object} {spot} came as a surprise.",
    "The last coach to {town} brought {hero}, a tired {trade}, who stepped down into the snow and saw {object} {spot}.",
    "Rain fell on {town} all through the week in which {hero}, the {trade}, discovered {object} {spot}.",
]
STORY_TURNS = [
    "{friend} of the {landmark} bid {count} crowns, but {creature} dragged it away.",
    "Its owner was {friend}, keeper of the {landmark}, who had lost it chasing {creature} for {count} miles.",
    "By noon {friend} ran up from the {landmark} with {creature} close behind, crying thief {count} times.",
    "A note named {friend} as its maker and told of {creature}, {count} years asleep beneath the {landmark}.",
    "Only {friend} could read its marks: feed {creature}, climb the {landmark}, count to {count}.",
    "That drew {creature}, so {friend} hid everyone at the {landmark} for {count} days.",
]
STORY_ENDS = [
    "Over {treat}, the two {resolve}.",
    "That evening they shared {treat} and {resolve}.",
    "After plenty of {treat}, half the street {resolve}.",
    "They paid everyone in {treat}, then {resolve}.",
    "Full of {treat}, both friends {resolve}.",
]
STORY_QUESTIONS = [
    ("What did {hero} find in {town}?", "{object}"),
    ("Where did {hero} find {object}?", "{spot}"),
    ("Which creature did {hero} and {friend} meet?", "{creature}"),
    ("What did everyone eat when the story of {hero} in {town} ended?", "{treat}"),
    ("With whom did {hero} of {town} share an adventure?", "{friend}"),
]

PERSON_BEGINNINGS = [
    "{name} was born on {born} and works as a {trade} in {town}.",
    "The guild book lists {name}, a {trade} from {town}, born on {born}.",
    "A {trade} by calling, {name} first saw the streets of {town} on {born}.",
    "{name}, the new {trade} at {town}, gave {born} as the date of birth.",
]
PERSON_FIELDS = {
    "ssn": ["The Social Security number is {ssn}.", "Social Security lists {ssn}.", "The tax office knows {ssn}."],
    "phone": ["Calls reach {phone}.", "After supper, ring {phone}.", "The shop telephone is {phone}."],
    "email": ["Write to {email}.", "Orders arrive by way of {email}.", "E-mail goes to {email}."],
    "address": ["Home is {address}.", "Parcels belong at {address}.", "The green front door stands at {address}."],
}
PERSON_QUESTIONS = [
    ("On which date was {name} born?", "{born_iso}"),
    ("Which Social Security number belongs to {name}?", "{ssn_digits}"),
    ("Under which phone number can {name} be called?", "{phone_digits}"),
    ("Which e-mail address does {name} use?", "{email}"),
    ("At which address does {name} live?", "{address}"),
]

MAKER_BEGINNINGS = [
    "{name}\n\n{name} (born {born}) is a {maker} who grew up in {town} as the youngest of {count} children.",
    "{name}\n\n{name}, born on {born} in {town}, is a {maker} and the founder of a travelling school.",
    "{name}\n\n{name} (born {born} in {town}) is a {maker} whose early years were spent aboard a river barge.",
    "{name}\n\n{name} is a {maker}. Born on {born}, the {maker} left {town} at the age of {count}.",
]
MAKER_CAREERS = [
    "Lessons with {teacher} in {place} led to {work}, awarded the {prize} in {year}.",
    "{work}, completed at {place} during {year} under {teacher}, earned the {prize}.",
    "Pupil of {teacher}, {last} took the {prize} for {work}, begun near {place} in {year}.",
    "In {year} {teacher} brought {work} from {place} before the jury of the {prize}, which it won.",
    "The {prize} followed {work}, a {year} piece about {place} made alongside {teacher}.",
]
MAKER_ENDS = [
    "{last} collects {hoard}.",
    "A barn of {hoard} became {last}'s museum.",
    "Visitors remember shelves of {hoard}.",
    "Retirement brought {hoard} by the hundred.",
]
MAKER_QUESTIONS = [
    ("Which prize did {name} win?", "{prize}"),
    ("Who taught the {maker} {name}?", "{teacher}"),
    ("Who made {work}?", "{name}"),
    ("What does {name} collect?", "{hoard}"),
    ("In which town did the life of {name} begin?", "{town}"),
]

OPPOSITES = _list("""
hot cold, early late, wet dry, full empty, loud quiet, thick thin, rough smooth, brave timid, deep shallow, wide
narrow, cheap costly, clean dirty, open shut, tall short, sweet bitter, young old, fast slow, sharp blunt, bright dim,
rich poor, tight loose, strong weak
""")

MONTHS = _list("January, February, March, April, May, June, July, August, September, October, November, December")
