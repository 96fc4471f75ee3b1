"""What the drawings of Open Clip Art are called in captions (`crate/data/captioned.py`): data only.

A line is a folder: what its drawings are called; then beginnings of file names, each with what such
drawings are called if that differs. A folder's line also applies to the folders inside it. "~":
without an article. (Many authors named their files in Italian or French.)
"""

NAMES = """
animals: animal; az lizard = lizard; cani e gatti = cat and a dog; crawfish; cymru flag = ~the flag
    of wales; mosquito; pinguino = penguin; rana = frog; scorpion; seal; tux = penguin
animals/birds: bird; bird of peace; cigno = swan; crow; gallo = rooster; gufo = owl; gull; new
    penguin = penguin; owl on branch = owl on a branch; rooster; seagull; tacchino = turkey
animals/birds/penguin: penguin; plush tux = plush penguin
animals/bugs: insect; abeille = bee; ant; butterfly; cavalletta = grasshopper; coccinella =
    ladybird; farfalla = butterfly; formicona = ant; lumaca = snail
animals/dinosaurs: dinosaur
animals/fantasy: creature; mermaid; the incredible tux = penguin; troll
animals/fish: fish; altum angelfish = angelfish; bluewhale = blue whale; brown fish; dolphin;
    giraffe cichlid = cichlid; seahorse; yellow gourami = gourami
animals/mammals: mammal; angry monkey; canguro = kangaroo; cartoon squirrel = squirrel; contour
    camel = camel; contour chipmunk = chipmunk; contour elephant = elephant; contour hamster =
    hamster; crazy monkey; dall sheep ram = ram; dog; elephant; elephant symbol = elephant; happy
    monkey; monkey head = monkey
animals/mammals/bears: bear
animals/mammals/big_cats: big cat; contour cheetah = cheetah; tigre = tiger
animals/mammals/dogs: dog; beagle; bored dog
animals/mammals/horses: horse
animals/mammals/housecats: cat; kitten; sleeping cat
buildings: building; brick = brick wall; carnegie library = library; church building = church; ch
    teau fort = castle; city horizon = city; eiffel tower = ~the eiffel tower; factory; firestation
    = fire station; grain elevator; old sign; perspectival house = house; school; school hallway; us
    capitol = ~the us capitol; wall; water tower
buildings/furniture: piece of furniture; poltrona = armchair; sedia = chair; small square table;
    soft blue couch = blue couch; tavolo = table; television; wooden barrel; wooden table
buildings/homes: house; abitazione = villa; big house; chalet; home; lighthouse; pinkhome = pink
    house
buttons: button; glass buttons; shopping cart
computer: computer symbol; arrow down = arrow; arrow left green = green arrow; arrow right green =
    green arrow; arrow right purple = purple arrow; bb cd = compact disc; browser; cpu heatsink =
    heat sink; etiquette scanner = scanner; finestre = window; floppy = floppy disk; gnome color
    palette = palette; pda; satellite; teacher
computer/buttons: button
computer/connectors: connector; connector usb = usb connector; usb = usb connector
computer/diagrams: diagram; network; network cloud; storage = storage system
computer/folders: folder; blue folder
computer/games: computer game; xbox controller = game controller
computer/hardware: computer device; laserprinter = laser printer; mouse = computer mouse; router
computer/icons: computer icon; angel icon = angel; battery; bell; black sum = sum sign; bookcase;
    bookmark; bookmarks = bookmark; calligraphy = ~calligraphy; camera; cdrom = cd drive; chart;
    checkmark = check mark; clock; cookie; cut = pair of scissors; digital camera; document;
    downarrow = arrow pointing down; drawing document = document; dvd = dvd drive; editcut = pair of
    scissors; edittrash = trash can; ellipse; emoticon = smiley; energy star; envelope; eyes; fax =
    fax machine; file; file locked = locked file; filenew = new file; fileprint = printer; firefox =
    fox; flag; floppy = floppy disk; flower; folder; folder blue = blue folder; folder green = green
    folder; folder grey = grey folder; folder grey open = open grey folder; folder home = home
    folder; folder locked = locked folder; folder music = music folder; folder orange = orange
    folder; folder orange open = open orange folder; folder red = red folder; folder red open = open
    red folder; folder violet = violet folder; folder violet open = open violet folder; folder
    yellow = yellow folder; foglio e mondo = globe; fonts = letters; glass; gohome = house;
    gradient; gramophone; green arrow; green ball; grey wheel; grid; hdd = hard disk; help =
    question mark; homepage = house; hotel icon = hotel sign; html document = document; icons;
    information sign; knife; laptop; laser pointer = laser pointer; leftarrow = arrow pointing left;
    lifebelt; lightning icon = bolt of lightning; line = line; list; lock; lockoverlay = lock; mail
    = letter; math document = document; matrix; message = letter; minitower = computer tower; money
    = ~money; mouse = computer mouse; music = musical note; music clef = clef; music flat = flat
    sign; network; newspaper; notebook; otto = bird; package = parcel; paintbrush; palette; password
    = key; people = ~people; percent = percent sign; phone; piano; pointing finger; pointing hand;
    pointinghand = pointing hand; polygon; presentation document = presentation; print = printer;
    printer; redroundbutton = red round button; rightarrow = arrow pointing right; rollerblades =
    roller skates; salvagente = lifebelt; sand glass = hourglass; scanner; scissors; shield;
    signature; socket; sound = loudspeaker; soundcard = sound card; spreadsheet; stamp; star;
    statistics; stock brush = brush; stock circle = circle; stock spiral = spiral; stock square =
    square; stock star = star; stop = stop sign; stopsign = stop sign; sum = sum sign; tablet; text
    document = document; trashcan = trash can; trashcan empty = empty trash can; trashcan full =
    full trash can; tux = penguin; tv = television; uparrow = arrow pointing up; usb = usb plug;
    usbfloppy = floppy disk; user = person; video = film; wallet closed = closed wallet; wallet open
    = open wallet; warning = warning sign; window; windows; wine = glass of wine; wizard; xeyes =
    pair of eyes
containers: container; ammo can; borsa = bag; box; box with spring = box with a spring; cardboard
    box; cesto = basket; closed box; open box; out of the box = box; paperbag = paper bag; recycling
    box; valigie = suitcases
decorations: decoration; celtic triskell = triskelion; celticknotwork = celtic knot; evergreen
    wreath = wreath; flourish; left bottom corner = corner ornament; left top corner = corner
    ornament; right bottom corner = corner ornament; right top corner = corner ornament; solomons
    knot = knot; triskel = triskelion; wreath
education: ~something for school; brush; colori = coloured pencils; erlenmeyer = flask; logaritmic
    diagram = diagram; palette; paperclip = paper clip; pen; pencil; scissors; simple calculator =
    calculator; slate apple = slate and an apple; stamp; stappler = stapler
education/books: book; bibliografia = row of books; closed bible; closed book; diary; libro di
    ricette = cookbook; newspaper; old book; open bible; open book; paperback book; stack of books
electronics: electronic device; cassette video = video cassette; cd = compact disc; diodes;
    filmphoto = roll of film; macchina fotografica = camera; resistors; telecamera = video camera;
    video cassette
electronics/battery: battery
electronics/bulb: light bulb
food: ~food; bowl of steaming soup = bowl of soup; fondue; galette = pancake; large plate; lasagna =
    plate of lasagna; marshmallow on a stick; meatgrinder = meat grinder; menu; mix cucina = mixer;
    onion rings; pizza; pizza cheese = cheese pizza; pizza pepperoni = pepperoni pizza; pomodori =
    tomatoes; pumpkin; small plate; thanksgiving spread = thanksgiving dinner
food/beverages: drink; a teapot = teapot; baby bottle; bottled drink = bottle; coffe tea = cup;
    coffee = cup of coffee; flower pot; ice water = glass of ice water; lattine di birra = beer
    cans; milk = ~milk; mug; orange juice box = box of orange juice; pop can; soft drink; teacup;
    teiera = teapot; zielony kubek = green mug
food/beverages/alcohol: drink; bottiglia di vino = bottle of wine; cocktail; wine corks
food/breads_and_carbs: ~bread; croissant; pancake; pancakes; pancakes berries = pancakes with
    berries; pretzel
food/dairy: ~food; butter = ~butter; cheese = ~cheese
food/desserts: dessert; cone = ice cream cone; flan; gateau = cake; gelato = ~ice cream; glace =
    ~ice cream; lollipop; muffin; pie apple = apple pie; pie cherry = cherry pie; torta = cake
food/fruit: fruit; apple; cartoon apple = apple; cherries; cherry; grape; grapes; lemon; lemon half
    = ~half a lemon; lemon wedge; lime half = ~half a lime; orange; orange wedge; peach; pear; pera
    = pear; rondelle orange = slice of orange; strawberry; tile orange = orange; watermelon
food/meats_and_eggs: ~meat; bacon = ~bacon; breakfast sausage = sausage; chicken burger; fried egg;
    half egg = ~half an egg; hamburger; steak
food/vegetables: vegetable; corn cob; onion; pannocchia = corn cob; peperoncino = chili pepper;
    ravanello = radish
geography: map; africa = map of africa; australia = map of australia; basque = flag; brazil = map of
    brazil; canada umbrella = umbrella; czech republic map = map of the czech republic; earth globe
    = globe; europe = map of europe; garmin = gps device; gps = gps device; map of scandinavia; map
    of scotland; map of slovenia; mountain seal = seal; planet; queensland = map of queensland;
    south australia = map of south australia; spanish regions = map of spain; svg globe blue = blue
    globe; svg globe green = globe; symbol for a church = church symbol; tasmania = map of tasmania;
    ukrainian map = map of ukraine; victoria = map of victoria; war drum = drum; wire globe; world
    map
geography/astronomy: ~the moon; fullmoon = full moon; moon full = full moon; moon half = half moon;
    moonphases = row of moons; saturn = ~saturn; southen cross = constellation
logos: logo
office: ~something for the office; arrow; calculator; carta = sheet of paper; cartella = folder;
    cassa = cash register; certificate; cestino pieno = full waste basket; cestino vuoto = empty
    waste basket; cup; desk lamp; diagramma = diagram; dossier = folder; envelop = envelope;
    envelope; eraser; fancy folder = folder; feather; handphone = mobile phone; lana = ball of wool;
    large braces; lens = magnifying glass; lettera = letter; liberty = lamp; magnifying glass;
    manuscriot = scroll; mars lumograph = pencil; megaphone; milimetered paper = sheet of paper;
    note with paperclip = note with a paper clip; note with pin = note with a pin; open box;
    paperface = sheet of paper; parchment paper = sheet of parchment; pen; pen pencil = pen and a
    pencil; pencil; pennello = brush; picture frame; pin blue = blue pin; pin green = green pin; pin
    red = red pin; pinzatrice = stapler; postage stamp; printer; puntine = pins; reunion = meeting;
    scissors; scotch = roll of tape; tabella = calendar
office/telephone: telephone; cellular phone = mobile phone; mobile = mobile phone; red telephone;
    sprint cell phone = mobile phone; telephone receiver
people: person; a boy plays soccer = boy with a ball; a happy boy = happy boy; a man singing = man
    singing; angry punk; baby; bach = composer; ballerina; breakdance = dancer; boy symbol = boy;
    bussiness woman = business woman; camper sleeping = tent; card figure jack = jack; dancer;
    dancers; einstein = scientist; faces; fireman; fireman wedding = wedding couple; girl symbol =
    girl; golf drive = golfer; grampa n gramma = grandfather and a grandmother; grandpa =
    grandfather; happy woman; head; hikinh = hiker; john coltrane portrait = portrait; kid = child;
    man; martin luther king = ~martin luther king; pattinatrici = skaters; ppls = ~people; profile =
    head; rich young man; roller blader = roller skater; safety pin; silvia = woman; sub subacqueo =
    diver; van gogh s room = bedroom; wedding couple; wedding sign = wedding couple; woman nurse =
    nurse; yoga = person doing yoga
people/bodypart: part of the body; blue eye; dente = tooth; ear; eye; feet in sandals; hand; iris
    and pupil = eye; left foot print = footprint; lips; mouth; olifant = elephant; right foot print
    = footprint; right hand print = handprint; thumbs up = thumb
people/clothing: piece of clothing; earring; gold chain; hiking boot; mitten; pattino = ice skate;
    shoe print = print of a shoe; t shirt = t-shirt; tennis shoes; wild summer shorts = shorts
people/clothing/hats: hat; baseball cap; bejewelled crown = crown; blue fedora; green fedora; jacob
    leisler = man with a hat; simple crown = crown; slouch hat; sombrero
people/clothing/pantyhose: ~pantyhose
people/smilies: smiley; air = blue creature; crystal = green creature; splash = blue creature
people/stickmen: stickman
plants: plant; acorn; albero = tree; bamboo = ~bamboo; cactus; cacuts = cactus; daffodil; fall
    coloured tree = tree in autumn; fall scene = autumn scene; island palm = palm tree; mushroom;
    olivier = olive tree; reed; shamrock; toadstool; tree branches = tree
plants/flowers: flower; bouquet of flowers; cartoon tree = tree; daisy; geranium; magnolia; pink
    rose
plants/trees: tree; bowsaw = saw; bypasspruner = pair of pruning shears; christmas balls; christmas
    tree; fern
recreation: game; dartboard; knitting = ~knitting; sledge; televisore = television; tv = television
recreation/games: game; ball
recreation/games/cards: playing card; audio cassette; brown hair boy face = boy; photo; celtic vine
    corner = corner ornament
recreation/games/chess: chess piece; black and white kings = chess kings; black and white queens =
    chess queens; chess set = chess pieces; chesspieces bishop = chess bishop; chesspieces pawn =
    chess pawn; yet another chess game = game of chess
recreation/games/dice: ~dice
recreation/holiday: holiday; christmas light = christmas lights; rainbow; sunshine = sun; yellow
    scroll; xmas = christmas tree; easter = easter egg
recreation/holiday/valentines: heart; heart arrow = heart with an arrow; heart cluster = hearts
recreation/music: musical instrument; africandrum = african drum; bass guitar; double note = musical
    note; electric guitar; flute; guitar; harp; musical note; piano keys; piano theory = piano keys;
    rpm record = record; rpm records = records; simple croche = musical note; treble clef; treble
    staff = treble clef; trumpet
recreation/party: party; balloon blue = blue balloon; balloon green = green balloon; balloon orange
    = orange balloon; balloon purple = purple balloon; balloons; dancer; fire = ~fire; pacco = gift
recreation/religion: religious symbol; empty tomb; simple cross = cross
recreation/sports: sport; anelli = gymnast on rings; baseball; baseball bat; basebalm = baseball;
    football ball = football; football helmet; golf = golf club; judo = ~judo; karate kick; soccer
    ball; sport = athlete; surfboard; ticket
recreation/toys: toy; ball; beach ball; beachball = beach ball; boomerang; kiddy train = toy train;
    rubber ducks; simple teddy bear = teddy bear; teddybear = teddy bear
science: scientific device; chemistry flask = flask; double helix; esperimento = flask; evolution
    steps = ~evolution; microscopio = microscope; provetta = test tube; scale
science/astronomy: planet; full moon; jupiter = ~jupiter; mondo = ~the earth; moon; the moon = ~the
    moon; venus = ~venus
science/medicine: medicine; barattolo = jar of pills; siringa = syringe; medicina = medicine bottle
shapes: shape
shapes/arrows: arrow; direction = arrow; green arrow
shapes/callouts: callout
shapes/jigsaw: jigsaw piece; jigsaw blue = blue jigsaw piece; jigsaw green = green jigsaw piece;
    jigsaw red = red jigsaw piece
signs_and_symbols: sign; airplane; copyright = copyright sign; danger = danger sign; for sale sign;
    half star rating = ~half a star; one and a half star = ~one and a half stars; peace symbol; pen;
    thought cloud; vancouver city badge = badge
signs_and_symbols/awards: award; banner; ribbon; trophy
signs_and_symbols/clocks: clock; alarm clock; modern clock
signs_and_symbols/disability: disability sign
signs_and_symbols/hazard: hazard sign; cute skull = skull
signs_and_symbols/led: led; led circle red = red led; led rectangular v blue = blue led; led
    rectangular v yellow = yellow led; led rounded h purple = purple led; led rounded v orange =
    orange led; led rounded v red = red led; led square yellow = yellow led; led triangular green =
    green led; led circle grey = grey led
signs_and_symbols/map_symbols: map symbol; aiga bus = bus; aiga coffee = cup of coffee; aiga
    escalator = escalator; aiga left arrow = arrow pointing left; aiga up arrow = arrow pointing up
signs_and_symbols/money: ~money; diamond; gold coins; penny; piggybank = piggy bank; portafoglio =
    wallet; saphire = sapphire
signs_and_symbols/weather: weather symbol; cloudy = cloud; drop = drop of water; icicles; rain =
    ~rain; snow = ~snow; snowstorm; sole = sun; storm; sun; tsunami warning sign; w cloud = cloud
special: label; cdfrontcover = cd cover; gradient radial eyeball = red eyeball; poster example =
    poster; strawberry border = border of strawberries; hideaway = certificate
special/patterns: pattern; pattern arrow = pattern of arrows; pattern arrows = pattern of arrows;
    pattern chevrons = pattern of chevrons; pattern crosses = pattern of crosses; pattern diamond =
    pattern of diamonds; pattern dot = pattern of dots; pattern dots = pattern of dots; pattern
    herringbone = herringbone pattern; pattern puzzle = jigsaw pattern; pattern square = pattern of
    squares; pattern squares = pattern of squares; pattern triangle = pattern of triangles
tools: tool; blacksmith anvil = anvil; blacksmith hammer = hammer; brush roller = paint roller;
    bussola = compass; calamita = magnet; forchettoni = forks; gallows; hammer; hurricane lamp;
    ironing board; key; lente = magnifying glass; livella = spirit level; lock; lock open = open
    lock; magnifing glass = magnifying glass; nodding donkey = oil pump; pan; roundpointshovel =
    shovel; ruota dentata = gear wheel; scart connector = connector; screwdriver; trowel; unit
    blocks = building blocks; vacuum cleaner
tools/weapons: weapon; bullet hole; little boy = bomb; m = rifle; mortar; sword
transportation: vehicle; ambulans = ambulance; autos = cars; bicycle; big truck; bus; cattle =
    cattle truck; cycles = bicycles; dodge = car; fire engine; little tan suitcase = suitcase; old
    car; pallone aerestatico = hot air balloon; skoda car = car; truck
transportation/boating: boat; knot
transportation/roadsigns: road sign; falling rocks = falling rocks sign; no u turn sign; one way
    sign; oneway = one way sign; stop = stop sign; stop sign; train = railway sign; tram = tram
    sign; tunnel = tunnel sign
transportation/vehicles: vehicle; aircraft; bicicletta = bicycle; chevrolet = car; lighthouse;
    military airplane; plane = airplane
transportation/vehicles/hummers: car
unsorted: ~something; alerta = warning sign; ambulanza = ambulance; analisi del sangue = test tubes;
    ape miele = honeycomb; asse da stiro = ironing board; attaccapanni = dress on a hanger; azienda
    = building; biberon = baby bottle; blocco ghiaccio = block of ice; blocco notes = notebook;
    calzettoni = socks; cammello = camel; candela = candle; carretta = wheelbarrow; ciuccio =
    pacifier; colombo = pigeon; condominio = apartment building; elefante = elephant; fattoria =
    farm; festoni = garlands; fiocco = bow; foglie marroni = brown leaves; foglie rosse = red
    leaves; foglie verdi = green leaves; generic ticket = ticket; grattacieli = skyscrapers;
    grondaia = gutter; igloo; imbianchino = painter; lampada = lamp; montacarichi = forklift; mucca
    = cow; orme = footprints; otto = bird; papera = duck; pecorella = sheep; pesistica = weights;
    pinzatrice = stapler; principessa = princess; profilati = steel beams; proiettore = projector;
    provetta = test tube; provette = flasks; question = question mark; ragazza = girl; ragazza
    bionda = girl with blond hair; ragazza rossa = girl with red hair; ragazzo = boy; recznik =
    towel; rosa = rose; rose = roses; sacco a pelo = sleeping bag; scodella = bowl; sega = saw;
    signorina = lady; silouette = ladies; signorinacappello = lady with a hat; signorinafoulard =
    lady with a scarf; simbol donna = woman; spaventapasseri = scarecrow; splatter = splatter of
    ink; stones; struzzo = ostrich; traslocatore = man with a box; trekking = hiker; uovo = egg; wet
    paint sign; zaino = backpack
"""

# Flags are named after the place; in the folder of a country, without the country's name.
FLAGS = "signs_and_symbols/flags/"
CONTINENTS = ("africa", "america", "asia", "europe", "oceania")
OTHER_FLAGS = """
signs_and_symbols/flags: flag; semaphore = person with semaphore flags; signalflag = signal flag
signs_and_symbols/flags/historic/pirates: pirate flag
"""
ARTICLED = ("bahamas", "columbia", "emirates", "federation", "gambia", "islands", "republic")
# Beginnings of names of flags that are not places.
NO_PLACES = (
    "ampelmaennchen",
    "canada flag",
    "citt",
    "corsica patricia",
    "flag",
    "israeli flag",
    "norwegian",
)
