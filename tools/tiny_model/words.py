"""The word lists of the built-in model's dialogues, in English and Chinese."""

CAPITALS = [
    ("France", "Paris", "法国", "巴黎"),
    ("Germany", "Berlin", "德国", "柏林"),
    ("Italy", "Rome", "意大利", "罗马"),
    ("Spain", "Madrid", "西班牙", "马德里"),
    ("Portugal", "Lisbon", "葡萄牙", "里斯本"),
    ("China", "Beijing", "中国", "北京"),
    ("Japan", "Tokyo", "日本", "东京"),
    ("England", "London", "英国", "伦敦"),
    ("Russia", "Moscow", "俄罗斯", "莫斯科"),
    ("Greece", "Athens", "希腊", "雅典"),
    ("Egypt", "Cairo", "埃及", "开罗"),
    ("Kenya", "Nairobi", "肯尼亚", "内罗毕"),
    ("Canada", "Ottawa", "加拿大", "渥太华"),
    ("Australia", "Canberra", "澳大利亚", "堪培拉"),
    ("Thailand", "Bangkok", "泰国", "曼谷"),
    ("Norway", "Oslo", "挪威", "奥斯陆"),
    ("Sweden", "Stockholm", "瑞典", "斯德哥尔摩"),
    ("Austria", "Vienna", "奥地利", "维也纳"),
    ("Poland", "Warsaw", "波兰", "华沙"),
    ("Cuba", "Havana", "古巴", "哈瓦那"),
    ("Peru", "Lima", "秘鲁", "利马"),
    ("Ireland", "Dublin", "爱尔兰", "都柏林"),
]
COLOURS = [
    ("the sky", "blue", "天空", "蓝色"),
    ("grass", "green", "草", "绿色"),
    ("snow", "white", "雪", "白色"),
    ("a banana", "yellow", "香蕉", "黄色"),
    ("a tomato", "red", "西红柿", "红色"),
    ("coal", "black", "煤", "黑色"),
    ("an orange", "orange", "橙子", "橙色"),
    ("the sun", "yellow", "太阳", "黄色"),
    ("an elephant", "grey", "大象", "灰色"),
    ("chocolate", "brown", "巧克力", "棕色"),
]
SOUNDS = [
    ("cat", "meow", "猫", "喵喵"),
    ("dog", "woof", "狗", "汪汪"),
    ("cow", "moo", "牛", "哞哞"),
    ("duck", "quack", "鸭子", "嘎嘎"),
    ("sheep", "baa", "羊", "咩咩"),
    ("frog", "ribbit", "青蛙", "呱呱"),
    ("bee", "buzz", "蜜蜂", "嗡嗡"),
]
OPPOSITES = [
    ("hot", "cold", "热", "冷"),
    ("big", "small", "大", "小"),
    ("up", "down", "上", "下"),
    ("fast", "slow", "快", "慢"),
    ("day", "night", "白天", "黑夜"),
    ("happy", "sad", "高兴", "难过"),
    ("open", "closed", "开", "关"),
    ("old", "new", "旧", "新"),
    ("light", "dark", "亮", "暗"),
    ("tall", "short", "高", "矮"),
    ("early", "late", "早", "晚"),
    ("full", "empty", "满", "空"),
]
FACTS = [
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("How many legs does a dog have?", "A dog has four legs."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("How many hours are in a day?", "There are twenty-four hours in a day."),
    ("How many minutes are in an hour?", "There are sixty minutes in an hour."),
    ("What is the largest planet?", "The largest planet is Jupiter."),
    ("What is the biggest ocean?", "The biggest ocean is the Pacific Ocean."),
    ("What is the highest mountain?", "The highest mountain is Mount Everest."),
    ("What do bees make?", "Bees make honey."),
    ("What is ice made of?", "Ice is frozen water."),
    ("What do plants need to grow?", "Plants need water, light and air to grow."),
    ("What is water made of?", "Water is made of hydrogen and oxygen."),
    ("Where do fish live?", "Fish live in water."),
    ("What is a penstock?", "A penstock is a pipe that carries water to a turbine, and a gate that controls the flow."),
    ("What is Penstock?", "Penstock serves language models through a queue, so that no request is ever lost."),
    ("What is Redis?", "Redis is a fast database that keeps its data in memory."),
    ("What is a queue?", "A queue is a line: the first one in is the first one out."),
    ("What is a GPU?", "A GPU is a processor that does many small sums at the same time."),
    ("What is a token?", "A token is a small piece of text, such as a word or a part of a word."),
    ("Who wrote Hamlet?", "William Shakespeare wrote Hamlet."),
    ("一个星期有几天？", "一个星期有七天。"),
    ("一年有几个月？", "一年有十二个月。"),
    ("一天有多少小时？", "一天有二十四个小时。"),
    ("最大的行星是什么？", "最大的行星是木星。"),
    ("蜜蜂做什么？", "蜜蜂酿蜂蜜。"),
    ("鱼住在哪里？", "鱼住在水里。"),
    ("水是由什么组成的？", "水是由氢和氧组成的。"),
]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
WEEKDAYS_ZH = ["星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"]
MONTHS = [
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
]  # fmt: skip
SPELLED = """
apple bread chair water house table mouse horse green river stone cloud light night paper music
happy queen tiger zebra lemon melon grape onion carrot potato garden window kitchen school friend
mother father sister brother winter summer spring autumn yellow purple orange silver golden cat dog
fish bird cow pig hen fox owl bee ant sun moon star rain snow wind fire tree leaf rose lake sea boat
ship train plane car bus road door wall roof book pen desk lamp clock phone cup bowl plate spoon fork
knife milk tea rice soup cake egg salt sugar honey king ring hand foot head eye ear nose mouth hair
world hello queue redis stream worker token model penstock python
""".split()
NAMES = ["Mia", "Tom", "Anna", "Ben", "Lily", "Max", "Nora", "Sam", "Ella", "Leo"]
ANIMALS = ["cat", "dog", "fox", "bird", "rabbit", "mouse", "horse", "bear", "duck", "goat"]
PLACES = ["forest", "garden", "village", "mountain", "river", "castle", "meadow", "harbour"]
THINGS = ["a golden key", "an old map", "a small boat", "a red kite", "a shiny stone", "a lost letter"]
FEELINGS = ["happy", "curious", "brave", "quiet", "cheerful"]
NAMES_ZH = ["小明", "小红", "小华", "小丽"]
ANIMALS_ZH = ["小猫", "小狗", "小兔子", "小鸟", "小熊"]
PLACES_ZH = ["森林", "花园", "村庄", "河边", "山上"]
THINGS_ZH = ["一把金钥匙", "一张旧地图", "一只小船", "一个红风筝"]

# Topics that the model does not know, so that it learns to say so.
TOPICS = """
quantum gravity economy politics football history war chemistry philosophy blockchain stocks weather climate virus
cooking photography religion law medicine kubernetes javascript rust compiler database network security cryptography
algebra calculus geometry statistics biology evolution genetics astronomy relativity entropy energy engine battery
travel hotel flight visa passport insurance tax salary interview resume marketing startup investment inflation
movie actor singer guitar piano opera painting sculpture poetry novel grammar linguistics psychology sociology
marathon tennis basketball chess poker yoga diet vitamin protein cancer diabetes headache fever sleep dream memory
happiness love friendship marriage divorce children education university exam homework essay thesis research
volcano earthquake tsunami desert jungle glacier dinosaur whale shark eagle spider snake bacteria mushroom
robot drone satellite rocket telescope microscope transistor laser radar internet browser keyboard monitor printer
""".split()
TOPICS_ZH = "量子 经济 政治 足球 历史 战争 化学 哲学 股票 天气 医学 法律 旅行 电影 音乐 编程 数学 物理 生物 人工智能 爱情 教育 考试 健康".split()
SYLLABLES = "ba ce di fo gu ka le mi no pu ra se ti vo wu xa yo zen lor fin mar tul pex dran stel quo bri".split()
