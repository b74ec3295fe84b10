"""Common names of things, beside which an audit asks what a picture shows."""

COMMON_NOUNS = (
    "apple", "arm", "arrow", "bag", "ball", "banana", "basket", "bear", "bed", "bell", "bench",
    "bicycle", "bird", "boat", "bone", "book", "bottle", "bowl", "box", "bread", "brush",
    "bucket", "bus", "butterfly", "button", "cake", "camera", "candle", "cap", "car", "card",
    "cat", "chair", "cheese", "church", "clock", "cloud", "coat", "comb", "computer", "cow",
    "crown", "cup", "curtain", "desk", "dog", "door", "dress", "drum", "duck", "ear", "egg",
    "elephant", "envelope", "eye", "face", "fan", "fence", "finger", "fish", "flag", "flower",
    "foot", "fork", "frog", "glass", "glove", "grass", "guitar", "hammer", "hand", "hat",
    "heart", "hill", "horn", "horse", "house", "jar", "jug", "kettle", "key", "kite", "knife",
    "ladder", "lamp", "leaf", "lemon", "lion", "lips", "lock", "map", "mirror", "monkey",
    "moon", "mountain", "mouse", "mouth", "mushroom", "nail", "needle", "nest", "nose", "onion",
    "orange", "paper", "pear", "pen", "pencil", "phone", "picture", "pig", "pillow", "pipe",
    "plane", "plate", "plug", "pot", "potato", "purse", "rabbit", "ring", "road", "rope",
    "ruler", "saw", "scarf", "scissors", "screw", "sheep", "shelf", "ship", "shirt", "shoe",
    "shovel", "snake", "soap", "sock", "spade", "spider", "sponge", "spoon", "stairs", "stamp",
    "star", "stone", "stool", "suitcase", "sun", "swan", "sword", "table", "tie", "tiger",
    "tomato", "tooth", "towel", "tower", "toy", "train", "tray", "tree", "trousers", "truck",
    "turtle", "umbrella", "vase", "violin", "wall", "wheel", "whistle", "window", "wing",
    "worm", "zebra",
)  # fmt: skip
