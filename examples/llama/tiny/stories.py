"""A grammar of little stories, the only training text of the model in this folder.

Every story is one walk through the templates below. What must stay the same within
a story (names, pronouns, the thing that was lost, where it was) is drawn once into a
dict; what may vary (wording) is drawn while a template is expanded:

    [a|b|c]   one of the alternatives, nested at will; an empty one makes it optional
    {key}     the story's own fact; {^key} the same with a capital letter

Run `python stories.py 5` to print five stories.
"""

import random
import re
import sys

# Names come from a short list most of the time and from a long one otherwise, so
# that a model also meets names rarely and learns to copy rather than to recite.
GIRLS = "Mia Lily Anna Zoe Ella Ruby Nora Ivy Maya Clara Sara June Rosa Tess Lena Amira Kira Emma".split()
BOYS = "Tom Ben Leo Sam Max Finn Omar Jack Eli Noah Theo Hugo Luca Ravi Owen Kai Felix Arlo".split()
MORE_GIRLS = """Alice Ada Agnes Alma Amelia Amy Aria Asha Astrid Ava Bea Bella Beth Carmen Celia Chloe Cora
Dana Diana Dora Edith Elena Elif Elsa Emily Erin Esme Eva Fatima Flora Freya Gemma Grace Greta Hana Hanna
Helen Hope Ida Ines Irene Iris Isla Jade Jane Jasmin Joan Julia Kate Laila Laura Leila Lola Lotte Lucy Luna
Mae Maria Marta Mary Matilda Mina Molly Nadia Nina Olga Olive Paula Petra Priya Rita Rosie Sadie Selma Sofia
Stella Sue Suki Talia Tara Thea Tina Uma Vera Viola Wanda Yara Yuki Zara""".split()
MORE_BOYS = """Adam Alan Albert Alex Amir Andy Anton Arthur Axel Bill Bjorn Bob Bruno Carl Charlie Chen Cody
Cyrus Dan David Diego Dylan Ed Elias Emil Enzo Eric Ethan Evan Frank Fred Gabriel George Gus Hamza Hans
Harry Henry Ian Idris Igor Isaac Ivan Jacob James Jan Jay Jim Joe John Jonas Juan Karl Kenji Kofi Lars Lee
Liam Liu Louis Luke Marco Mark Martin Mateo Mick Miles Milo Nate Ned Nico Oscar Otto Pablo Paul Peter
Raj Ray Rio Rob Roy Ryan Simon Stan Tariq Ted Tim Tony Victor Walt Will Yusuf Zack""".split()
BEASTS_F = "Hazel Poppy Maple Willow Juniper Pepper Honey Dot Fern Tilly Plum Luna Cleo Misty Dolly Nettle".split()
BEASTS_M = "Rusty Pip Bramble Biscuit Moss Toby Chester Buster Rolo Barley Cedar Monty Bruno Scout Ziggy Otis".split()

BEASTS = """fox rabbit bear mouse squirrel hedgehog badger otter duck frog turtle kitten puppy goat lamb
deer raccoon beaver penguin owl cat dog dragon""".split()
TRAITS = "little brave kind curious shy clever cheerful gentle quiet playful careful small young".split()
HOMES = {
    "child": ["a little house by the sea", "a small village", "a house on a hill", "a busy town",
              "a red house near the woods", "a tall house with a blue door", "a cabin by the lake"],
    "beast": ["a cozy den under a tree", "a small hut by the river", "the green forest",
              "a tiny house in the woods", "a quiet valley", "a hollow log near a stream"],
}
HOBBIES = ["to sing", "to draw", "to climb trees", "to read stories", "to run in the grass", "to look at the stars",
           "to paint", "to dance", "to tell jokes", "to collect shells", "to play outside", "to help others",
           "to explore new places", "to make things", "to watch the clouds", "to listen to the birds"]

# A place, what is seen there, and where a thing can hide there.
PLACES = {
    "the park": (["children were laughing on the swings", "the trees were full of birds", "a band was playing music"],
                 ["under a bench", "behind the big oak tree", "next to the fountain", "under the slide"]),
    "the forest": (["the trees were tall and green", "the air smelled of pine", "mushrooms grew along the path"],
                   ["under a fern", "behind a mossy log", "inside a hollow tree", "at the foot of a tall pine"]),
    "the beach": (["the waves were small and blue", "gulls were calling in the sky", "the sand was warm and soft"],
                  ["behind a rock", "under some seaweed", "inside an old boat", "next to a sand castle"]),
    "the river": (["the water was clear and cold", "little fish swam by", "dragonflies danced over the water"],
                  ["between two stones", "under the bridge", "in the reeds", "behind a willow tree"]),
    "the meadow": (["the flowers were yellow and white", "bees were humming", "butterflies were everywhere"],
                   ["in the tall grass", "beside a patch of clover", "behind a fence post", "next to a rabbit hole"]),
    "the market": (["people were selling fruit and bread", "it smelled of fresh bread", "there were many bright stands"],
                   ["under a fruit cart", "behind a barrel of apples", "next to the flower stand", "under a table"]),
    "the farm": (["the hens were clucking", "the cows were eating grass", "the hay smelled sweet"],
                 ["under the hay", "behind the barn", "next to the well", "in the hen house"]),
    "the hill": (["the wind was strong at the top", "the whole valley could be seen", "the grass was long and green"],
                 ["behind a bush", "under a flat stone", "next to the old gate", "in a clump of daisies"]),
    "the lake": (["the water shone like glass", "ducks were swimming in a line", "the reeds moved in the wind"],
                 ["at the end of the dock", "under a boat", "in the reeds", "behind a log"]),
    "the orchard": (["the apples were red and round", "the branches were heavy with fruit", "wasps buzzed around the plums"],
                    ["under an apple tree", "inside an empty basket", "behind a ladder", "next to the stone wall"]),
    "the village square": (["the clock tower was ringing", "people were talking and laughing", "pigeons were walking around"],
                           ["behind the statue", "under the clock tower", "next to the fountain", "under a cart"]),
}

COLORS = "red blue green yellow purple orange white silver golden".split()
THINGS = {  # what a hero can carry and lose, and what it may be like
    "ball": COLORS, "kite": COLORS, "scarf": COLORS + ["warm", "long"], "hat": COLORS + ["funny", "straw"],
    "book": ["thick", "old", "blue", "red", "little"], "bell": ["silver", "golden", "tiny", "shiny"],
    "lantern": ["little", "old", "green", "paper"], "drum": ["red", "small", "round", "wooden"],
    "key": ["old", "silver", "golden", "tiny"], "whistle": ["silver", "wooden", "shiny", "blue"],
    "boat": ["toy", "paper", "wooden"], "map": ["old", "paper", "secret"], "flute": ["wooden", "silver", "little"],
    "basket": ["round", "little", "brown"], "blanket": ["soft", "blue", "yellow", "striped"],
    "necklace": ["shiny", "golden", "shell", "green"], "umbrella": COLORS, "cup": ["blue", "green", "tin", "striped"],
    "ring": ["silver", "golden", "shiny"], "marble": ["glass", "green", "blue", "shiny"],
    "paintbrush": ["thin", "old", "blue"], "backpack": COLORS, "button": ["round", "shiny", "golden", "wooden"],
    "teddy bear": ["soft", "brown", "old"], "stone": ["smooth", "shiny", "white", "green"],
    "feather": ["white", "blue", "long", "golden"], "top": ["spinning"], "bucket": COLORS,
}
BREAKABLE = {
    "cup": COLORS, "vase": COLORS, "lantern": ["paper", "green", "little"], "drum": ["red", "small", "big"],
    "flute": ["wooden", "long"], "clock": ["small", "wooden", "golden"], "music box": ["little", "silver", "blue"],
    "tea pot": COLORS, "bowl": COLORS, "guitar": ["old", "brown", "little"], "lamp": ["tall", "green", "yellow"],
    "mirror": ["round", "silver", "tall"], "toy ship": ["wooden", "white", "blue"], "picture frame": ["golden", "wooden"],
}
GIVERS = ["grandmother", "grandfather", "uncle", "aunt", "mother", "father", "best friend", "cousin"]


def person(r, kind=None):
    """A character: how to name it, how to introduce it, and its pronouns."""
    kind = kind or r.choice(["child", "child", "beast"])
    girl = r.random() < 0.5
    pron = ("she", "her", "her", "herself") if girl else ("he", "him", "his", "himself")
    trait = r.choice(TRAITS)
    if kind == "child":
        short, long = (GIRLS, MORE_GIRLS) if girl else (BOYS, MORE_BOYS)
        name = r.choice(short if r.random() < 0.75 else long)
        noun, intro = ("girl" if girl else "boy"), None
    else:
        noun = r.choice(BEASTS)
        # Half of the animals have no name: "One morning, the fox ..." is a fine beginning too.
        name = r.choice(BEASTS_F if girl else BEASTS_M) if r.random() < 0.5 else f"the {noun}"
        intro = f"a {trait} {noun}" if name.startswith("the ") else None
    intro = intro or f"a {trait} {noun} named {name}"
    return dict(n=name, noun=noun, intro=intro, trait=trait, kind=kind,
                he=pron[0], him=pron[1], his=pron[2], self=pron[3])


def expand(r, template, facts):
    while "[" in template:  # innermost choices first
        template = re.sub(r"\[([^\[\]]*)\]", lambda m: r.choice(m[1].split("|")), template)
    def fact(m):
        value = facts[m[2]]
        return value[0].upper() + value[1:] if m[1] else value
    while "{" in template:  # a fact may mention another one
        template = re.sub(r"\{(\^?)(\w+)\}", fact, template)
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", template)
    # A question or exclamation in quotes may be followed by "asked ...", so only these are sure sentence starts.
    text = re.sub(r'((?:^|[.!?] |\." )"?)([a-z])', lambda m: m[1] + m[2].upper(), text)
    return re.sub(r"  +", " ", text).strip()


# ---------------------------------------------------------------------------
# Plots. Each has `go` (why the hero is where the story happens), `body`, and
# `end`; a plot may ask for a place outdoors, a thing, a weather, and extra facts.

PLOTS = []


def plot(go, body, end, weather="any", **facts):
    PLOTS.append(dict(go=go, body=body, end=end, weather=weather, facts=facts))


plot(  # a lost thing, found alone
    go=["{when}{n} went to {place} [to play with {his} {thing}|with {his} {thing}|and took {his} {thing} along].",
        "{when}{n} took {his} {thing} to {place}."],
    body=["[The {th} was a gift from {his} {giver}, and {n} loved it very much.|{^he} loved that {th} more than anything, because it was from {his} {giver}.|It was {his} favorite {th}.]",
          "[At {place}, {sight}.|{^sight}.|]",
          "[{^n} played all [morning|afternoon]|{^n} ran and jumped for a long time|{^n} sat down to rest for a while], but when it was time to go home, the {th} was gone!",
          "[\"Oh no! Where is my {th}?\" {he} cried.|\"My {th}! I have lost my {th}!\" said {n}.|{^n} felt a lump in {his} throat.] [{^he} wanted to cry, but {he} took a deep breath.|{^his} eyes filled with tears.|{^he} did not know what to do.]",
          "[First, {he} looked {spot2}, but there was only [a leaf|some dust|a sleepy snail|a ladybug]. Then {he} looked {spot}.|{^he} looked {spot2}. It was not there. {^he} looked {spot}.|{^he} walked back the way {he} had come and looked {spot2}, but found nothing. At last {he} looked {spot}.]",
          "[There was the {thing}!|And there it was, the {thing}!|Something moved in the light. It was the {thing}!]",
          "[{^he} was so happy that {he} [jumped up and down|danced in a circle|laughed out loud].|{^n} hugged the {th} and smiled.|\"There you are!\" {he} said with a laugh.]"],
    end=["[From then on|After that day], {n} always [kept the {th} close|held the {th} with both hands|checked twice before going home].",
         "{n} carried the {th} home and put it [next to {his} bed|on the shelf|under {his} pillow], safe and sound.",
         "\"I will take better care of you,\" {he} told the {th}, and {he} did."],
    place=True, thing=True)

plot(  # a lost thing, found by a friend
    go=["{when}{n} went to {place} with {his} {thing}.", "{when}{n} was walking [to|near] {place} with {his} {thing}."],
    body=["[A strong wind came|{^n} tripped over a root|{^n} stopped to look at a butterfly|{^n} began to chase a leaf], and [when {he} looked again, the {th} was gone|the {th} was lost].",
          "{n} [looked and looked|searched everywhere|looked high and low], but [could not find it|the {th} was nowhere to be seen]. [{^he} sat down and cried.|{^he} felt very sad.|{^he} was close to tears.]",
          "[Just then, {intro2} came by.|Then {intro2} walked up to {him}.|After a while, {intro2} stopped beside {him}.] \"[Why are you so sad|What is wrong|What happened]?\" asked {n2}.",
          "\"I [lost|cannot find] my {thing},\" said {n}. \"[It was a gift from my {giver}.|My {giver} gave it to me.|I have had it since I was very small.]\"",
          "\"[Do not worry|Do not cry|Cheer up],\" said {n2}. \"[We can look for it together|I will help you look|Four eyes see more than two].\"",
          "They looked {spot2}. [Nothing.|It was not there.|They found only an old shoe.] [Then {n2} looked {spot}.|Then they looked {spot}.]",
          "\"[Is this it|Is this your {th}|Look! Is this yours]?\" asked {n2}, holding up [a {thing}|the {thing}].",
          "\"[Yes, that is my {th}|Yes! You found it|That is it]!\" {n} [shouted|cried|said] with joy. \"Thank you, {call2}!\""],
    end=["[From that day on, {n} and {n2} were [best friends|good friends].|{^n} and {n2} played together until the sun went down.]",
         "To say thank you, {n} [shared {his} {snack} with {n2}|let {n2} play with the {th} too|gave {n2} a big hug].",
         "{n} learned that [looking is easier with a friend|it is good to ask for help|a kind friend is worth more than any {th}]."],
    place=True, thing=True, friend=True)

plot(  # someone small is stuck
    go=["{when}{n} was walking [near|by|through] {place}.", "{when}{n} went to {place} [to play|for a walk|to look around]."],
    body=["[{^sight}.|]",
          "Suddenly {he} heard a [small|tiny|sad] voice. \"[Help|Help me|Please help]!\" it [cried|called|said].",
          "{n} [looked around|followed the sound] and saw {critter} {stuck}. [The poor thing was shaking.|It looked very scared.|It could not get out.]",
          "\"[Do not be afraid|Stay calm|Do not worry, little one],\" said {n}. \"I will help you.\"",
          "[First {he} tried to pull with {his} hands, but it did not work.|{^he} thought for a moment.|{^he} was not very strong, but {he} was clever.] Then {he} [found|saw|picked up] {tool} and {freed}.",
          "[Slowly, slowly|Bit by bit|At last], the {crit} came free. \"[Thank you|You saved me|You are so kind]!\" it said.",
          "[\"You are welcome,\" said {n}.|{^n} smiled. \"Anyone would have helped,\" {he} said.|{^n} felt warm inside.]",
          "[A few days later|The next week|Not long after], {n} [got lost in the fog|could not find the way home|lost {his} way]. [The {crit} saw {him} and showed {him} the path.|Who came to help? It was the little {crit}! It showed {him} the way home.|The {crit} heard {him} calling and led {him} all the way home.]"],
    end=["\"[You helped me, and now I help you|A good deed always comes back]!\" said the {crit}.",
         "{n} and the {crit} [were friends for the rest of their lives|stayed friends for many years].",
         "So {n} learned that [even a small friend can be a big help|kindness always finds its way back]."],
    place=True,
    pick=[("critter crit stuck tool freed".split(), [
        ("a little bird", "bird", "caught in an old net", "a sharp stone", "cut the net"),
        ("a tiny mouse", "mouse", "at the bottom of a deep hole", "a long stick", "let it down like a ladder"),
        ("a green beetle", "beetle", "on its back", "a blade of grass", "turned it over gently"),
        ("a small bee", "bee", "in a puddle", "a dry leaf", "lifted it out of the water"),
        ("a baby hedgehog", "hedgehog", "under a heavy branch", "a strong stick", "lifted the branch"),
        ("a gray squirrel", "squirrel", "between two rocks", "a piece of wood", "pushed the rocks apart"),
        ("a little snail", "snail", "in the middle of the road", "a big leaf", "carried it to the grass"),
        ("a tiny frog", "frog", "in an empty bucket", "a wooden board", "made a bridge for it"),
        ("a white dove", "dove", "in a thorn bush", "a pair of thick gloves", "moved the thorns away"),
    ])])

plot(  # fear of something, overcome with a friend's help
    go=["{when}{n} [sat|stood] near {place} and watched {pal2}, who could {skill} [so well|very well|without fear].",
        "{when}{n} and {pal2} went to {place}. {^n2} wanted to {skill}."],
    body=["[{^n} wanted to {skill} too, but {he} was afraid.|\"I wish I could {skill},\" said {n}. \"But I am too scared.\"|{^n} had never learned to {skill}. {^he} was too scared to try.]",
          "\"[What if I {fail}?|I might {fail}!]\" {he} [said|thought].",
          "\"[I was afraid too, at first|Everyone is scared the first time|Nobody can do it right away],\" said {n2}. \"[Come, I will show you|Just try a little every day|I will be right beside you].\"",
          "On the first day, {n} [tried only for a minute|only watched and listened|tried once and ran away]. On the second day, {he} [tried again|tried three times|did a little better].",
          "[Once, {he} did {fail}.|One time, {he} did {fail}, and it hurt a bit.] [But {he} got up again.|\"That was not so bad!\" {he} said.|{^n2} helped {him} up, and they both laughed.]",
          "[Day after day|Every morning|Each day] {he} [practiced|tried again], and {he} became [better and better|a little braver|less afraid].",
          "[Then one day, it happened.|And then, on a {weather2} day, {n} was ready.|At last the big day came.] {^n} [took a deep breath|closed {his} eyes, counted to three|smiled at {n2}] and {did}!",
          "\"[I did it|Look at me|I can do it]!\" {n} [shouted|called|cried]. {^n2} [clapped and cheered|was very proud|jumped for joy]."],
    end=["{n} was still a little afraid, but [{he} knew that being brave means trying anyway|that did not stop {him} anymore].",
         "Now {n} [can {skill} every day|teaches others to {skill}].",
         "And that is how {n} learned to {skill}."],
    friend=True,
    pick=[("skill fail did place".split(), [
        ("swim", "sink", "swam all the way across", "the pond"),
        ("ride a bike", "fall down", "rode down the whole street", "the end of the street"),
        ("climb a tree", "slip", "climbed to the very top", "the big oak tree"),
        ("skate on the ice", "fall down", "skated in a big circle", "the frozen lake"),
        ("dive", "swallow water", "dived deep into the blue water", "the lake"),
        ("jump over the water", "fall in", "jumped right over it", "the stream"),
        ("sing on the stage", "forget the words", "sang the whole song", "the village hall"),
        ("walk on the wall", "fall off", "walked from one end to the other", "the old stone wall"),
        ("row a boat", "tip over", "rowed to the other side and back", "the lake"),
    ])])

plot(  # baking with something missing
    go=["{when}{n} wanted to [make|bake] {dish} for {pal2}.",
        "{when}{n} decided to [make|bake] {dish}. It was a surprise for {pal2}."],
    body=["[It was {n2}'s birthday.|{^n2} had been sick all week.|{^n2} had just come back from a long trip.|{^n2} had been so kind to {him}.]",
          "{n} [took out a big bowl and a spoon|washed {his} hands and put on an apron|lit the oven and got to work]. {^he} had {ing1} and {ing2}, but [there was no {ing3}|the {ing3} jar was empty|the {ing3} was all gone].",
          "\"[I cannot bake without {ing3}!|What can I do without {ing3}?|Oh dear, no {ing3}!]\" {he} [said|thought].",
          "[So {he} ran to the house of {intro3}.|{^he} went next door, where {intro3} lived.|On the path {he} met {intro3}.] \"Do you have some {ing3}?\" {n} asked.",
          "\"[I do|Of course|Yes, plenty],\" said {n3}. \"[But can you help me first? {job}|I will give you some if you help me a little. {job}]\"",
          "{n} was glad to help. [Soon the work was done|It did not take long], and {n3} gave {him} [all the {ing3} {he} needed|some {ing3}|plenty of {ing3}].",
          "[Back home|In the kitchen], {n} [mixed everything together|stirred and stirred|put it all in the bowl] and [put it in the oven|waited by the oven]. [Soon the whole house smelled sweet.|It smelled so good!|After a while, it was ready.]",
          "When {n2} [tasted it|took the first bite|saw the {dish_}], {he2} [smiled from ear to ear|could not believe it|clapped {his2} hands]. \"[This is the best {dish_} I ever had!|Did you really make this all by yourself?|How wonderful!]\" {he2} said."],
    end=["\"{^n3} helped me,\" said {n}. So they [invited {n3} too|shared it with {n3}|saved a big piece for {n3}], and they all ate together.",
         "{n} [smiled|was very proud]. [It was the best day of the week.|Making others happy made {him} happy too.]"],
    friend=True, third=True,
    pick=[("dish dish_ ing1 ing2 ing3".split(), [
        ("an apple pie", "pie", "apples", "flour", "sugar"), ("a chocolate cake", "cake", "chocolate", "eggs", "flour"),
        ("honey bread", "bread", "flour", "milk", "honey"), ("a berry cake", "cake", "berries", "sugar", "butter"),
        ("a carrot cake", "cake", "carrots", "eggs", "butter"), ("a lemon pie", "pie", "lemons", "butter", "flour"),
        ("a plum tart", "tart", "plums", "flour", "milk"), ("a nut cake", "cake", "nuts", "honey", "butter"),
        ("a cherry pie", "pie", "cherries", "eggs", "flour"), ("pumpkin bread", "bread", "a pumpkin", "eggs", "sugar"),
    ]), (["job"], [
        ("I must carry this wood inside.",), ("My garden needs water.",), ("I cannot reach the top shelf.",),
        ("My fence needs paint.",), ("I lost my glasses.",), ("The leaves must be swept.",)])])

plot(  # caught by a storm
    go=["{when}{n} went to {place} [to play|for a long walk|to meet a friend|to look around]. [{^sight}.|]"],
    body=["[All at once|Suddenly|After a while], [dark clouds came over the hills|the sky turned gray|the wind began to howl]. [Drops of rain began to fall|It started to rain hard|Thunder rolled far away], and {n} [had no coat|was far from home|got wet from head to toe].",
          "\"[I need to find a dry place!|I must get out of the rain!|Where can I go?]\" {he} [said|thought].",
          "{n} ran [as fast as {he} could|through the rain|along the path] until {he} saw {shelter}. [It was dark there, but dry.|It was dry there.|It was a good place to wait.]",
          "[Then {he} heard a noise. It was {intro2}, [wet and cold|shaking with cold].|But someone else was there. It was {intro2}.] \"[May I come in|Can I stay here too|Is there room for me]?\" asked {n2}.",
          "\"[Come in, come in|Of course|Yes, there is room for both of us],\" said {n}. [They sat close together to keep warm.|{^he} moved over to make room.]",
          "[They told each other funny stories|They sang songs|They shared {n}'s {snack}|They counted the seconds after each flash], and [soon they forgot about the storm|the thunder did not seem so loud anymore|the time went by quickly].",
          "[At last the rain stopped.|After an hour, the storm was over.|Then the sun came out again.] [A rainbow stood over {place}.|Every leaf was shining.|The air smelled fresh and new.]",
          "\"[I was afraid of the thunder|I do not like storms],\" said {n2}, \"but [with you it was fun|not when I have a friend].\""],
    end=["{n} and {n2} walked home together, [jumping in every puddle|side by side|singing all the way].",
         "From that day on, whenever it rained, {n} thought of {n2} and smiled.",
         "And so the storm [brought two friends together|gave {n} a new friend]."],
    place=True, friend=True,
    pick=[(["shelter"], [("a hollow tree",), ("an old shed",), ("a small cave",), ("an empty barn",),
                         ("a stone bridge",), ("a big upside-down boat",), ("a little tent",)])])

plot(  # two want the same thing
    go=["{when}{n} and {pal2} went to {place} [together|to play].", "{when}{n} was playing with {pal2} at {place}."],
    body=["[{^sight}.|]",
          "[There|{spot}|{spot}], they found a {thing}. [It was beautiful.|Nobody seemed to own it.|They both saw it at the same time.]",
          "\"[I saw it first|It is mine|I want it]!\" said {n}. \"[No, I saw it first|No, it is mine|But I want it too]!\" said {n2}.",
          "[They both pulled at the {th}.|They began to argue.|They pulled and pushed.] [Then, with a loud snap, the {th} broke in two.|Soon they were both angry, and the {th} fell into the mud.|The {th} slipped from their hands and rolled away.]",
          "[{^n} went home alone, and so did {n2}.|They did not speak for a while.|They turned their backs to each other.] [But it was no fun to play alone.|But {n} felt bad.|The day felt long and gray.]",
          "[The next morning|After a while], {n} went back to {n2}. \"I am sorry. [A friend is more important than a {th}|We can share it|Let us fix it together],\" {he} said.",
          "\"I am sorry too,\" said {n2}. [They cleaned the {th} and made it [as good as new|shine again].|Together they made the {th} [as good as new|whole again].]",
          "[In the morning it was {n}'s turn, and in the afternoon it was {n2}'s turn.|On Mondays {n} kept it, and on Tuesdays {n2} did.|They took turns, and nobody was sad.]"],
    end=["It was much more fun to share.", "They never fought over a {th} again.",
         "And the {th} was [twice as nice|even nicer], because now it belonged to both of them."],
    place=True, thing=True, friend=True)

plot(  # lost on the way home
    go=["{when}{n} followed [a butterfly|a white feather in the wind|a little stream|a trail of footprints] [into|past] {wild}.",
        "{when}{n} walked [far into|deep into|all the way through] {wild}."],
    body=["[{^he} did not look at the path.|It was so pretty that {he} forgot the time.|{^he} went on and on.] When {he} turned around, [nothing looked familiar|the path was gone|{he} did not know the way home].",
          "[The sun was going down.|It was getting dark.|The shadows grew long.] \"[I am lost!|Where am I?|Which way is home?]\" said {n}. [{^his} heart beat fast.|{^he} felt very small.|]",
          "[{^he} called out, but only the wind answered.|{^he} sat down on a stone to think.|\"Stay calm,\" {he} told {self}.]",
          "Then {he} saw {intro2} [sitting on a branch|coming along the path|resting under a tree]. \"[Excuse me, do you know the way home|Please, can you help me|Please, which way should I go]?\" asked {n}.",
          "\"[Of course|I know these woods well|It is easy],\" said {n2}. \"{hint}\"",
          "{n} [thanked {n2}|said thank you] and did [just that|what {n2} had said]. [{^he} walked and walked.|Step by step, {he} went on.|The moon came up and lit the way.]",
          "[At last {he} saw a light in the distance. It was {his} own home!|Soon {he} could see the smoke of {his} own chimney.|And there, at the end of the path, was home!]",
          "{^his} {parent} was standing at the door. \"[There you are|I was so worried|Welcome home]!\" said {his} {parent} and gave {him} a big hug."],
    end=["That night, {n} ate two bowls of hot soup and slept very well.",
         "The next day, {n} brought {n2} [a basket of berries|a honey cake|a jar of jam] to say thank you.",
         "After that, {n} always [looked for signs along the path|told someone where {he} was going]."],
    friend="beast",
    pick=[(["hint"], [
        ("Follow the river. It flows past the village.",), ("Walk toward the brightest star.",),
        ("Keep the wind on your back until you reach the bridge.",),
        ("Look for the white stones. They mark the path.",),
        ("Listen for the bells of the village and walk toward them.",),
        ("Go past the three old oaks and turn left.",)]),
        (["parent"], [("mother",), ("father",), ("grandmother",), ("grandfather",)]),
        (["wild"], [("the forest",), ("the dark woods",), ("the tall corn field",), ("the misty hills",), ("the deep valley",)])])

plot(  # a seed grows
    go=["{when}{n} found [a tiny seed|a strange seed|a round brown seed] [on the path|in an old box|in {his} pocket].",
        "{when}{his} {giver} gave {n} a tiny seed."],
    body=["\"[What will it become|I wonder what is inside|What could it be]?\" {he} [asked|said|wondered].",
          "{^he} [dug a small hole in the garden|filled a pot with soft earth|found a sunny spot near the wall] and put the seed in. [Every day|Each morning], {n} [gave it water|watered it] and [sang it a song|told it a story|said good morning to it].",
          "But [nothing happened|nothing came up]. [One day, two days, a whole week went by.|A week passed, and then another.] \"[Maybe it is sleeping|Maybe it does not like me|Perhaps it is only a stone],\" said {n}.",
          "[\"You are wasting your time,\" laughed {pal2}.|\"Seeds need time. Wait and see,\" said {pal2}.|\"Do not give up,\" said {pal2}.] [But {n} did not give up.|So {n} kept on watering.|{^n} nodded and waited.]",
          "Then, one {weather2} morning, {n} saw [a tiny green leaf|something green|a little green tip]! \"[It is growing|Look, it is alive|Come quickly]!\" {he} [shouted|called].",
          "[It grew and grew.|Every day it was a little taller.|Soon it was taller than {n}.] By the end of [the summer|the year], it was {plant}.",
          "{use}"],
    end=["\"[Good things take time|I am glad I waited],\" said {n}.", "And {n} kept [one|a new] seed, to plant it next spring.",
         "Everyone who came by stopped to look at it, and {n} was very proud."],
    friend=True,
    pick=[(["plant", "use"], [
        ("a giant sunflower", "The birds came to eat the seeds, and bees danced around it all day."),
        ("a pumpkin as big as a cart", "{^n} and {n2} made soup for the whole village."),
        ("a little apple tree", "In autumn, {n} and {n2} picked the first red apple and shared it."),
        ("a bush full of sweet berries", "{^n} and {n2} picked berries until their fingers were blue."),
        ("a rose bush with a hundred roses", "{^n} gave a rose to everyone {he} knew, and the first one went to {n2}."),
        ("a tall bean plant", "{^n} and {n2} climbed up on a ladder to pick the beans."),
        ("a cherry tree full of white flowers", "{^n} and {n2} sat under it and watched the petals fall like snow."),
    ])])

plot(  # a broken thing is mended
    go=["{when}{n} was playing with a {thing}. It belonged to {his} {giver}.", "{when}{n} borrowed a {thing} from {his} {giver}."],
    body=["[{^he} was told to be careful.|\"Be careful with it,\" {his} {giver} had said.|It was very old, and there was only one like it.]",
          "But {n} [ran too fast|was not looking|jumped off a step], and the {th} [fell to the ground|slipped out of {his} hands]. [Crack! It was broken.|It broke.|There was a loud crack.]",
          "{n} [stood very still|turned pale|did not know what to do]. [\"Nobody saw it,\" {he} thought. \"I could hide it.\"|\"I could say that the cat did it,\" {he} thought.|{^he} wanted to run away and hide.] But {his} tummy felt [heavy|bad|like a stone].",
          "[So {he} went to {pal2}.|Then {pal2} came in.] \"[What should I do|I broke the {th}. What now]?\" {n} asked.",
          "\"[Tell the truth|It is always best to tell the truth|I would say sorry],\" said {n2}. \"[And then we can fix it|I will come with you|It will feel better after that].\"",
          "So {n} went to {his} {giver}. \"I am [sorry|so sorry],\" {he} said. \"I broke your {th}.\"",
          "[For a moment it was very quiet.|{^his} {giver} looked at the {th} for a long time.] Then {his} {giver} [smiled|hugged {him}]. \"[Thank you for telling me|I am proud of you for telling the truth|Things can be fixed],\" said {his} {giver}. \"[We can fix it together|Get the glue, and we will fix it|Come, I will show you how to fix it].\"",
          "They worked all [evening|afternoon]. [In the end, the {th} was almost as good as new.|There was still a small line on it, but that only made it more special.|When they were done, {n} could hardly see the crack.]"],
    end=["{n} felt [as light as a feather|much better]. Telling the truth was [hard, but it was right|not so hard after all].",
         "From that day on, {n} was [always careful|very careful] with other people's things.",
         "\"The truth is the best glue,\" said {his} {giver}, and they both laughed."],
    friend=True,
    pick=[(["thing", "th"], [(a + " " + t, t) for t, kinds in BREAKABLE.items() for a in kinds])])

plot(  # a race
    go=["{when}there was a big race [near|at] {place}, and {n} wanted to win.",
        "{when}{n} heard about a race at {place}. \"I want to win!\" {he} said."],
    body=["[{^n} had trained for many weeks.|{^he} had new shoes and a lot of hope.|{^he} was not the fastest, but {he} never gave up.] The prize was a {thing}.",
          "[{^intro2} was in the race too.|Next to {him} stood {intro2}.|{^n} looked at the others. One of them was {intro2}.] \"[Good luck|May the best one win]!\" said {n2}.",
          "\"[Ready, set, go|One, two, three, go]!\" [shouted the judge|someone called], and [off they went|they all ran]. [{^sight}, but {n} did not look.|The crowd cheered.|Dust flew into the air.]",
          "[Soon {n} was in front.|{^n} ran like the wind.|{^n} passed one after another.] [The end was already in sight.|Only a few more steps!|{^he} could already see the {th}.]",
          "Then {he} heard a cry. {^n2} had [fallen and hurt {his2} foot|slipped in the mud|tripped over a stone].",
          "{n} [stopped|looked at the prize, then at {n2}|thought for only a moment]. [Then {he} ran back.|{^he} turned around and ran back.] \"[Hold on to me|Lean on me|I will help you],\" {he} said.",
          "[Side by side|Step by step|Slowly], the two of them [walked to the end|crossed the line]. They were the very last. But [everybody stood up and clapped|the crowd cheered louder than ever].",
          "[The winner came and gave the {thing} to {n}. \"You are the real winner,\" said the winner.|\"This is for you both,\" said the judge, and gave them [a second prize|a big cake to share].]"],
    end=["{n} had not won the race, but {he} had won a friend.", "\"Thank you, {call},\" said {n2}. \"Next time we will race together.\"",
         "And that was better than coming in first."],
    place=True, thing=True, friend=True)

plot(  # a noise at night
    go=["One [dark|cold|quiet|windy] night, {n} could not sleep.", "[Late one night|In the middle of the night], {n} woke up."],
    body=["[There was a strange noise.|{^he} heard something.] {^noise}! [It came from {where}.|The sound came from {where}.] {^noise}!",
          "\"[Who is there|What is that|Is it a monster]?\" {n} [whispered|asked]. [Nobody answered.|There was no answer.|It was quiet for a moment, and then it came again.]",
          "{n} [pulled the blanket over {his} head|hid under the blanket|held {his} pillow tight]. [But then {he} thought of {pal2}, who was never afraid.|\"I am brave,\" {he} told {self}.|But {he} also wanted to know what it was.]",
          "[So {he} took {his} {thing} and [tiptoed|walked slowly] toward the sound.|{^he} held {his} {thing} in front of {him} and [tiptoed|walked slowly] toward the sound.] [The floor creaked.|The moon made long shadows.|It was very dark.]",
          "{^noise}! [{^he} counted to three and looked.|{^his} hands were shaking, but {he} looked.|{^he} lit a candle and looked.]",
          "It was [not a monster at all|no monster]. It was only {source}!",
          "{n} [began to laugh|laughed until {his} tummy hurt]. \"[What a fright you gave me|So it was you|And I thought you were a monster]!\" {he} said.",
          "{solve}"],
    end=["Then {n} went back to bed and slept until the morning.", "After that, {n} was not afraid of noises in the night anymore.",
         "In the morning, {he} told {pal2} the whole story, and they laughed together."],
    thing=True, friend=True,
    pick=[("noise where source solve".split(), [
        ("tap, tap, tap", "the window", "a branch in the wind", "{^he} opened the window and tied the branch back with a string."),
        ("scratch, scratch", "the door", "a little cat that wanted to come in", "{^he} let the cat in, and it curled up on the bed."),
        ("drip, drop, drip", "the kitchen", "the water tap", "{^he} turned the tap, and the noise stopped."),
        ("hoo, hoo", "the roof", "an owl with big yellow eyes", "The owl blinked and flew off to the moon."),
        ("crunch, crunch", "the cupboard", "a mouse with a cookie", "{^he} gave the mouse a piece of cheese, and the mouse bowed."),
        ("bump, bump", "the attic", "a ball rolling in the wind", "{^he} closed the attic window, and all was still."),
        ("squeak, squeak", "the garden", "the old gate", "{^he} shut the gate and put a stone in front of it."),
    ])])

plot(  # a present without money
    go=["{when}{n} wanted to buy a present for {pal2}.", "{when}{n} remembered that the birthday of {pal2} was [near|only two days away]."],
    body=["[But {he} had only one small coin.|But {his} pockets were empty.|But {he} had no money at all.] \"[What can I give|How can I get a present]?\" {he} [asked|wondered].",
          "{n} went to {place} to [think|look for ideas]. [{^sight}.|]",
          "[At a small stand|On the way], {he} saw a {thing}. [It was perfect, but it cost too much.|\"That would be just right,\" {he} said. But it cost too much.]",
          "[Then {he} met {intro3}.|Just then {intro3} came by.] \"[Why do you look so sad|What are you thinking about]?\" asked {n3}.",
          "{n} told {n3} [everything|about the present]. \"[The best presents are made, not bought|A present from the heart costs nothing|You have two hands and a good heart],\" said {n3}. \"[Make something yourself|Just try it]!\"",
          "So {n} {made}. [It took the whole day.|{^he} worked until the sun went down.|It was not easy, but {he} did {his} best.]",
          "On the big day, {n2} opened the [box|bag|paper]. [{^his2} eyes grew wide.|For a moment, {he2} said nothing.] \"[Did you make this yourself|Is this really for me]?\" {he2} asked.",
          "\"[Yes|I did],\" said {n}. \"[I hope you like it|I had no money for a {thing}].\" \"[I love it|It is the best present of all|It is better than any {thing}]!\" said {n2}."],
    end=["{n2} kept it forever.", "And {n} smiled, because {n3} had been right.",
         "That evening they [ate cake together|danced and sang|looked at it again and again]."],
    place=True, thing=True, friend=True, third=True,
    pick=[(["made"], [("painted a picture of the two of them under a rainbow",), ("wrote a song with three verses",),
                      ("made a bracelet out of shells",), ("carved a little bird out of wood",),
                      ("folded a hundred paper stars",), ("knitted a pair of warm socks",),
                      ("put together a little book of stories",), ("built a small house for the birds",)])])

plot(  # somebody new
    go=["{when}{intro2} came to live [next door to {n}|near {n}|in the same village as {n}].",
        "{when}{n} saw somebody new at {place}. It was {intro2}."],
    body=["{^n2} [did not know anyone|was all alone|sat alone and looked at the ground]. [Nobody asked {him2} to play.|The others only looked at {him2} and whispered.|The others ran past and did not see {him2}.]",
          "{n} [wanted to say hello, but {he} was shy|remembered how it felt to be new|watched for a while]. \"[What should I say|What if {he2} does not like me]?\" {he} thought.",
          "[Then {n} had an idea.|At last {he} made up {his} mind.] {^he} took {his} {thing} and [walked over|sat down next to {n2}].",
          "\"[Hello|Hi], I am {me},\" said {n}. \"[Do you want to play with my {th}|Would you like to see my {th}|Do you like my {th}]?\"",
          "{^n2} looked up. [A small smile came to {his2} face.|\"Really?\" {he2} asked.|{^his2} eyes began to shine.] \"[Yes, please|I would love to|I had a {th} like that at home],\" said {n2}.",
          "[They played all afternoon.|They played until it was dark.|They laughed so much that their sides hurt.] {^n2} [showed {n} a new game|knew many funny jokes|could whistle like a bird|told {n} about the place where {he2} came from].",
          "[Soon the others came to see what was so funny.|One by one, the others came over too.] \"[Can we play too|May we join you]?\" they asked. \"[Of course|The more, the better]!\" said {n}."],
    end=["{^n2} was never alone again.", "That night, {n2} told {his2} family, \"Today I made a friend.\"",
         "A single hello [can change a whole day|was all it took]."],
    place=True, thing=True, friend=True)

plot(  # the wind takes the kite
    go=["{when}{n} [and {pal2} made a kite out of paper and string|built a kite with {pal2}] and took it to {place}."],
    body=["The kite was {color} and had [a long tail|a tail of ribbons|a smiling face on it]. [{^n2} held the string while {n} ran.|\"Let me hold the string too!\" said {n2}.|{^n2} could not wait to see it fly.]",
          "[The wind was strong that day.|A strong wind was blowing.] [Up, up, up it went|The kite flew higher and higher], [as high as the clouds|higher than the trees|until it was only a small dot].",
          "\"[Look how high it is|It is touching the sky|It flies like a bird]!\" [shouted {n}|said {n2}|they both shouted].",
          "Then the string [broke|snapped|slipped out of {n}'s hand]. The kite [danced away over the trees|sailed off with the wind|flew away].",
          "[They ran after it|{^n} and {n2} ran and ran], over [a bridge|a fence|a stream] and through [a field|a gate|tall grass]. [At last they saw it.|They followed it all the way to the old mill.] The kite was {perch}.",
          "\"[It is too high for me!|I cannot reach it!|How will we get it down?]\" said {n}. [They thought hard.|Nobody knew what to do.]",
          "Just then {intro3} came by. \"[I can help you|Let me try|That is no problem for me],\" said {n3}. {^n3} [climbed up|used a long pole|stood on a box] and brought the kite down [safely|without a scratch].",
          "\"[Thank you!|You are a hero!|How can we thank you?]\" said {n}. \"[Let me fly it once|May I fly it too|Just let me have a turn],\" said {n3}."],
    end=["So all three of them flew the kite until [the sun went down|evening].",
         "They tied the string with three knots, and the kite never flew away again.",
         "And high up in the sky, the {color} kite danced and danced."],
    place=True, friend=True, third=True, weather="windy",
    pick=[(["perch"], [("stuck in a tall tree",), ("on the roof of a barn",), ("on top of a big rock",),
                       ("hanging from a tower",)]),
          (["color"], [(c,) for c in COLORS])])

plot(  # the first snow
    go=["{when}{n} looked out and saw that everything was white. It was the first snow!",
        "{when}the snow began to fall, and {n} ran outside."],
    body=["[{^he} put on {his} warmest scarf and called {pal2}.|\"Come out, it is snowing!\" {he} called to {pal2}.|{^pal2} was already waiting outside.]",
          "[They made a big snowman|They built a snowman together|First they rolled three big snowballs and made a snowman]. It had [two stones for eyes|two buttons for eyes] and [a carrot for a nose|a pine cone for a nose].",
          "\"[He looks cold|He needs something to wear|Something is missing],\" said {n2}. So {n} gave the snowman {his} {thing}.",
          "[That night it grew very cold.|When it was dark, they went home to drink hot milk.|In the evening they waved good night to the snowman.] {n} [lay in bed and thought of the snowman|looked out of the window one more time].",
          "The next morning, [the sun was warm|the snow was melting], and the snowman was [getting smaller|a little thinner]. \"[Oh no, he is melting|He will be gone soon|What will become of him]!\" said {n}.",
          "\"[Do not be sad|It is all right],\" said {n2}. \"[The snow turns to water, and the water makes the flowers grow|He is only going on a trip. He will come back next winter].\"",
          "[So they sat with the snowman and told him stories until he was gone.|They took a picture of the snowman and said goodbye.|They sang him a song, and a drop ran down his face, as if he was smiling.] [Only the {thing} was left.|On the ground lay the {thing}, wet and clean.]"],
    end=["In spring, [a white flower|a patch of snowdrops] grew [just there|in that very spot], and {n} and {n2} knew who had sent it.",
         "\"See you next winter,\" said {n}.", "And when winter came again, they knew just what to do."],
    thing="wear", friend=True, weather="cold")

plot(  # a trade that grows
    go=["{when}{n} went to [the market|the village] with [a basket of eggs|three red apples|a jar of honey] [to sell|to trade].",
        "{when}{n} had nothing but [one egg|a red apple|a piece of bread], so {he} went to the market."],
    body=["On the way, {he} met {intro2}. \"[I am so hungry|I have not eaten all day],\" said {n2}. [{^n} did not think twice and shared what {he} had.|So {n} gave {n2} something to eat.] \"[Take this {thing} as thanks|Here, this {thing} is for you],\" said {n2}.",
          "[{^n} walked on with the {th}.|With the {thing} in {his} hands, {n} walked on.] Soon {he} saw {intro3}, who [was crying|looked very sad]. \"[I need a {th}, but I have none|If only I had a {th}|I have lost my {th}],\" said {n3}.",
          "\"[You can have mine|Take this one],\" said {n}. [{^he} did not ask for anything.|{^he} was happy to help.] {^n3} [jumped for joy and|was so glad that {he3}] gave {him} {gift}.",
          "[{^n} laughed. \"What will I do with that?\" {he} thought.|\"What a strange gift!\" thought {n}.] [But {he} said thank you and went on.|But {he} was polite, so {he} said thank you.]",
          "When {he} [came home|got home], {his} {giver} was waiting. \"[What did you bring from the market|What do you have there|Did you get any money]?\" asked {his} {giver}.",
          "\"No money,\" said {n}, \"but I have {gift} and two new friends.\"",
          "[{^his} {giver} laughed and laughed.|{^his} {giver} shook with laughter.] \"[Then you made a very good trade|That is worth more than gold|You did well],\" said {his} {giver}."],
    end=["And it was true, because {result}.", "In time, {result}."],
    thing=True, friend=True, third=True,
    pick=[(["gift", "result"], [
        ("a small brown hen", "the hen laid an egg every single day"),
        ("a bag of beans", "the beans fed them all winter long"),
        ("a tiny lamb", "the lamb grew up and gave them soft warm wool"),
        ("a stick from a plum tree", "the stick grew into a tree with sweet plums"),
        ("a lame old donkey", "the donkey got well and carried them wherever they wanted"),
        ("an old tea pot", "the tea from that pot was the best in the land")])])

plot(  # finding out who takes the food
    go=["{when}{n} put a [plate of cookies|bowl of berries|bowl of soup] on the window sill. An hour later, it was empty!",
        "{when}{n} saw that {his} {snack} had been eaten. Only crumbs were left."],
    body=["\"[Who ate it all?|Somebody was here!|This is a mystery!]\" said {n}. [{^he} looked for clues.|{^he} put on {his} hat and became a detective.]",
          "First, {n} asked {pal2}. \"[It was not me|I was asleep all morning|I did not touch it],\" said {n2}. \"[But I can help you look|But I would like to know who did it|Let us find out together].\"",
          "[Together they looked at the ground.|They took a big glass and looked at the floor.] There they saw {clue}. [\"Aha!\" said {n}.|\"Now we know more,\" said {n2}.|\"How strange,\" said {n}.]",
          "They followed [the trail|the clue] [through the garden|across the yard|along the path] until they came to {den}. [Something moved inside.|They heard a soft sound.|Two eyes looked out.]",
          "[Out came|There sat] {thief}, [with crumbs all over its face|looking very sorry|with a full tummy]. \"[Please do not be angry|I am so sorry],\" it said. \"[I was so hungry|It smelled so good|I have little ones to feed].\"",
          "{n} [wanted to be angry, but {he} could not|looked at {n2}, and both began to smile|thought for a while]. \"[Next time, just ask|You only had to ask|There is enough for everyone],\" {he} said.",
          "[So they made more, and this time there was enough for all of them.|From then on, {n} always put out a little extra.|The next day, they all had a picnic together.]"],
    end=["The mystery was solved, and {n} had a new friend.", "And {n2} said, \"You are the best detective in the world.\"",
         "And never again did anything go missing, because now everybody shared."],
    friend=True,
    pick=[("clue den thief".split(), [
        ("tiny footprints", "a hole under the shed", "a little gray mouse"),
        ("black and white hairs", "a den behind the hedge", "a young badger"),
        ("two red feathers", "a nest in the barn", "a small red hen"),
        ("wet footprints", "the edge of the pond", "a baby otter"),
        ("orange hairs", "a den between the roots of a tree", "a little fox"),
        ("round footprints", "a pile of dry leaves", "a sleepy hedgehog")])])

plot(  # the stars and a wish
    go=["One [clear|warm|quiet] evening, {n} sat [on the roof|on the hill|by the lake] and looked at the stars.",
        "One [clear|warm|quiet] night, {n} saw a falling star."],
    body=["\"[If I could have one wish|If wishes come true],\" {he} [said|whispered], \"I would like {wish}.\"",
          "[{^pal2} sat down next to {him}.|{^pal2} was there too.] \"[What did you wish for|What are you thinking about]?\" {he2} asked. \"[It is a secret|I must not tell, or it will not come true],\" said {n}.",
          "[The next day, {n} waited for the wish to come true.|All the next day, {he} waited.] [{^he} looked under the bed and behind the door.|{^he} looked everywhere.] [Nothing happened.|But nothing was there.]",
          "[So {n} told {n2} the secret after all.|In the end {he} told {n2}.] \"[Then let us make it come true ourselves|Stars are far away, but we are here],\" said {n2}. \"[We can do it|I know how to start].\"",
          "[They worked side by side|All week they worked|Day after day they worked] {work}. [Sometimes it was hard.|It did not always go well.] But [they never gave up|they helped each other].",
          "And then it was done. {^done}! [{^n} could hardly believe it.|{^n} clapped {his} hands.|\"It is just like in my dream,\" said {n}.]"],
    end=["\"[The star did help|So the wish came true],\" said {n}. \"It gave me the idea, and you gave me a hand.\"",
         "That night the stars seemed to [wink|smile] at the two friends.",
         "Since then, {n} knows that [wishes come true when you work for them|a friend is better than any falling star]."],
    friend=True,
    pick=[("wish work done".split(), [
        ("a house in a tree", "with wood and nails and ropes", "there stood a little house high up in the oak"),
        ("a boat of my own", "with old planks and a big white sheet", "a small boat with a white sail lay on the water"),
        ("a garden full of flowers", "with seeds and water cans", "the garden was full of flowers of every color"),
        ("a swing under the big tree", "with a rope and a board", "a swing was hanging from the strongest branch"),
        ("a music band", "with pots and spoons and an old guitar", "they played their first song for the whole village"),
        ("a puppet show", "with socks and buttons and paint", "the curtain opened, and everybody clapped"),
    ])])

# ---------------------------------------------------------------------------

INTROS = [
    "[Once upon a time, |Once upon a time, |Once upon a time, |Long ago, |]there was {intro}.",
    "[Once upon a time, |Once upon a time, |Once upon a time, |A long time ago, |]in {home}, there lived {intro}.",
    "Once upon a time, {intro} lived in {home}.",
    "{^intro} lived in {home}.",
    "In {home} lived {intro}.",
    "There once was {intro}.",
]
NAMED_INTROS = ["{n} was a {trait} {noun}.", "{n} was a {noun} who lived in {home}.", "This is the story of {n}, a {trait} {noun}."]
LOVES = ["{^he} loved {hobby}.", "{^he} liked {hobby}, [but most of all {he} liked {hobby2}|and {hobby2}].",
         "{^his} favorite thing was {hobby}.", "Everyone [knew|liked] {him}, because {he} was so {trait}.", ""]
LOVES_NAMED = ["{n} loved {hobby}.", "Every day, {n} got up early {hobby}."]
WHEN = ["One {weather} [morning|afternoon|day], ", "One {weather} [morning|afternoon|day], ", "One day, ", "One morning, ",
        "On a {weather} [day|morning], ", "Early one morning, ", "It was a {weather} [day|morning]. ",
        "Last week, ", "One Sunday, ", "Today, "]
PRELUDES = ["The sun was just coming up.", "The birds were singing.", "It was {n}'s favorite time of the year.",
            "{n} woke up early and looked out of the window.", "{n} liked {hobby}.", "{n} wanted to have an adventure.",
            "{n} could not sit still.", "{n} was in a good mood.", "{n} was bored.", "{n} had nothing to do.",
            "{n} lived in {home}."]
RAINY = ["It was a rainy [day|morning|afternoon], but {n} did not mind. "]
WEATHERS = {"any": "sunny warm cloudy bright quiet windy misty".split(), "windy": ["windy", "breezy"],
            "cold": ["cold", "frosty", "winter"]}
GENERIC_ENDS = ["[And they all lived happily|Everyone was happy].", "It was a day {n} would never forget.",
                "That night, {n} fell asleep with a smile.", "And {n} was very happy.", "What a day it had been!"]
SNACKS = ["apple", "sandwich", "cookies", "cheese", "berries", "bread", "cake", "nuts"]
WEARABLE = ["scarf", "hat"]


def story(r):
    """One story as a single paragraph."""
    p = r.choice(PLOTS)
    need = p["facts"]
    f = person(r)
    weather = WEATHERS[p["weather"]]
    hobbies = r.sample(HOBBIES, 2)
    f.update(home=r.choice(HOMES[f["kind"]]), hobby=hobbies[0], hobby2=hobbies[1], snack=r.choice(SNACKS),
             giver=r.choice(GIVERS), weather=r.choice(weather), weather2=r.choice(WEATHERS["any"]))
    taken = {f["n"], f["noun"]}
    for suffix, asked in (("2", need.get("friend")), ("3", need.get("third"))):
        if not asked:
            continue
        while True:  # nobody shares a name, or an animal's kind, with another one in the story
            q = person(r, asked if isinstance(asked, str) else None)
            if not taken & ({q["n"]} if q["kind"] == "child" else {q["n"], q["noun"]}):
                break
        taken |= {q["n"], q["noun"]}
        f.update({k + suffix: v for k, v in q.items()})
        f["call" + suffix] = "dear " + q["noun"] if q["n"].startswith("the ") else q["n"]
        f["pal" + suffix] = f"{f['his']} friend {q['n']}"
    f["call"] = "dear " + f["noun"] if f["n"].startswith("the ") else f["n"]
    f["me"] = "a " + f["noun"] if f["n"].startswith("the ") else f["n"]
    if need.get("place"):
        f["place"] = r.choice(list(PLACES))
        sights, spots = PLACES[f["place"]]
        f["sight"] = r.choice(sights)
        f["spot"], f["spot2"] = r.sample(spots, 2)
    if need.get("thing"):
        f["th"] = r.choice(WEARABLE if need["thing"] == "wear" else list(THINGS))
        f["thing"] = r.choice(THINGS[f["th"]]) + " " + f["th"]
    for keys, rows in need.get("pick", []):
        f.update(zip(keys, r.choice(rows)))

    named = not f["n"].startswith("the ")
    lines = []
    # Most stories introduce the hero; the others begin in the middle of things.
    if r.random() < 0.6:
        lines.append(r.choice(INTROS + (NAMED_INTROS * 2 if named else [])))
        lines.append(r.choice(LOVES + LOVES_NAMED))
        when = r.choice(WHEN)
    else:
        if need.get("thing") is True and r.random() < 0.15:
            lines.append("{n} had a {thing}. [{^he} took it everywhere.|It was {his} favorite.|]")
        elif r.random() < 0.25:
            lines.append(r.choice(PRELUDES))
        when = r.choice(WHEN + (RAINY if p["weather"] == "any" else []) + [""] * 8)
    f["when"] = expand(r, when, f) + " " if when else ""
    go = r.choice(p["go"])
    if not named and not lines and r.random() < 0.5:  # "One morning, the curious fox ..."
        go = go.replace("{n}", "the {trait} {noun}", 1)
    lines.append(go)
    lines += p["body"]
    lines.append(r.choice(p["end"]))
    if r.random() < 0.3:
        lines.append(r.choice(GENERIC_ENDS))
    if r.random() < 0.15:
        lines.append("The end.")
    return " ".join(filter(None, (expand(r, line, f) for line in lines)))


if __name__ == "__main__":
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        print(story(rng), end="\n\n")
