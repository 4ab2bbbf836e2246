"""The medical rows as they lie in the repository: encodings, counts, answers, think chains and the exam."""

import csv
import json
import re
from collections import Counter
from pathlib import Path
from statistics import mean, median

import pytest

MEDICAL = Path(__file__).resolve().parent.parent / "data/medical"
RAW = MEDICAL / "raw"
# file -> its encoding, its rows that stand on one line, lines with bytes that are not text
TABLES = {
    "内科/内科问答.csv": ("utf-8", 87, 1),
    "外科/外科问答.csv": ("gbk", 79, 1),
    "妇儿/妇产科/妇产科问答.csv": ("gb18030", 78, 0),
    "妇儿/儿科/儿科问答.csv": ("utf-8-sig", 75, 0),
    "急诊科/急诊科问答.csv": ("utf-16", 69, 0),
    "五官科/五官科问答.csv": ("gb18030", 64, 0),
    "皮肤科/皮膚科問答.csv": ("big5", 59, 0),
    "精神心理科/精神心理科问答.csv": ("gbk", 68, 0),
    "肿瘤科/肿瘤科问答.csv": ("utf-8", 54, 0),
    "老年与康复科/老年与康复科问答.csv": ("utf-8", 50, 0),
    "其他/补充问答.csv": ("utf-8", 8, 0),
}
SIMPLE = str.maketrans("撥診醫馬現趕則時當車護請門東開關", "拨诊医马现赶则时当车护请门东开关")

# Questions, read one by one, whose asker should be seen the same day: titles of the tables ...
URGENT_TITLES = """
胸口压榨样疼出冷汗 感冒后胸闷心慌爬楼累 拉黑便头晕站不稳 脸肿牙疼下巴底下也硬了 吃完火锅上腹剧痛往后背钻 花生呛住孩子憋得脸发紫 糖尿病脚上破了个口子不疼 一边手脚没劲嘴歪 长途飞机后小腿一边肿
糖友感冒吐了两天呼吸有烂苹果味 喝中药减肥后心慌手抖 吃了头孢喝了半瓶啤酒脸红心慌 肚子疼从心口转到右下边 吃完火锅右上腹疼到后背 疝气包推不回去疼得厉害 生锈钉子扎脚要打破伤风吗 吐血一大口黑红
腰突后尿不出来屁股麻 奶奶滑倒后大腿根疼站不起来 手腕扭伤小孩不敢动胳膊 打石膏后手指发紫发麻 颈椎外伤后手脚没力 尿里有血腰一侧绞痛 一点尿都尿不出小肚子憋得疼 睾丸突然剧痛一边肿 撞到头后一直吐
老人摔头一个月后糊涂 突然像炸雷一样头疼 后背痛脚没劲走路像踩棉花 手上切菜切到流血不止 切掉的手指头怎么保存 蚊虫咬后红线往上走 褥疮发黑有臭味 停经五十天一侧肚子撕裂样疼 怀孕六周一直吐吃啥吐啥
怀孕34周头疼看东西发花 胎动今天明显少了 胎膜破了流水要平躺 孕32周前置胎盘流血 卵巢囊肿五厘米突然剧痛呕吐 剖腹产刀口下面硬硬的流水 药流后大出血头晕 试管促排后肚子胀得像孕妇
大肚子尿频尿痛发热腰疼 怀孕7个月肚子一阵一阵发硬 胎盘早剥肚子硬得像木板 两个月宝宝发烧38.6 三岁娃发烧抽了一次 孩子半夜空空咳像小狗叫 孩子吃了玩具里的纽扣电池 一吃花生就嘴肿全身疙瘩
小宝宝吐奶像喷出来 孩子误喝了一口洁厕灵 腹股沟鼓包哭的时候大 小孩阵发哭闹拉果酱样大便 孩子高烧五天眼红嘴唇裂 感冒药两种一起吃了怎么办 孩子被热水烫了胳膊起泡 男孩睾丸突然剧痛
孩子身上出血点按不褪色 孩子偷吃了奶奶的降压药 煤气热水器洗澡晕倒 切菜削掉一块指尖肉止不住血 腹痛右下越来越重走路弯腰 停经四十多天突然一侧肚子剧痛 开水烫伤脚背起大泡 喝农药了人还清醒
被高压水枪喷进手指小洞 异物进眼金属渣子磨着疼 被强酸溅到脸眼睛 误服老公的降糖药四片 被狗咬大腿五个牙洞 房颤吃华法林鼻血不停 蛇咬了脚脖子有两个牙印 被马蜂蜇了十几下尿酱油色
电动车摔倒头着地断片了 生吞鱼胆后吐泻尿很少 野蘑菇吃完四个人拉肚子 鼻血流了一小时止不住老人 吃饭噎住说不出话手抓脖子 游泳抽筋呛水后一直咳 喝酒喝多叫不醒还打呼 工友中暑倒地浑身滚烫说胡话
喝了半瓶消毒酒精的老人 突然看不见一只眼像拉帘子 被针扎了不知道啥人用过的 胃出血老人呕咖啡色东西 下巴脱臼合不上嘴 吃海鲜后脖子起疙瘩喘不上 痔疮出血滴了一马桶 急性尿潴留十二小时没尿
结石疼得满地打滚 老人突然糊涂说胡话两天 胸闷胸痛撕裂样后背更重 痛经这次疼得昏过去 隐形眼镜戴着睡一宿眼睛疼 刀子扎进肚子还插着 老人摔一跤大胯疼站不起来 奶奶摔了一跤大腿根疼 误吞牙签卡哪了看不见
被开水蒸汽熏到脸红热 瘦高男生打完球突然一侧胸痛憋气 84和洁厕灵混一起呛到了 耳环孔化脓发烧耳朵肿大 吃药过量一次吞了一板安眠药 孕晚期头疼眼花血压160 深夜牙疼半边脸肿张不开嘴
手腕割伤手指伸不直 吐血又发烧肝硬化老病号 扭了腰动不了小便也不对 鞭炮炸到手大拇指快断 发烧寒战心跳快腿上红一片 吸入一口呛到瓜子咳了几天 出去旅游高原头疼呕吐走路晃 眼睛突然像窗帘拉下来
洁厕灵溅进眼睛了 头疼眼胀看灯有彩虹 左眼皮下垂看东西双影 角膜塑形镜戴着睡眼红疼 扁桃体旁边肿说话像含橄榄 甲亢吃药后嗓子疼高烧 拔牙回家半天还在渗血 小孩门牙摔掉了牙还在手里
吃完蝦全身風團喘不上氣 發燒後全身起皰嘴也爛 肚子疼從心口轉到右下邊 臉上被開水燙了 滅蟲藥灑身上了 褥瘡發黑有臭味 蜂蜇了眼皮 老公喝酒戒断发抖 误吞一把安眠药 吃锂盐手抖拉肚子 服药后脖子歪了
闺女不吃饭只剩37公斤 吃减肥药后幻听 被骗八万不敢告诉家人 化疗后发烧38度6 肝癌妈妈突然肚子剧痛 吃了止痛药便秘七天 咳血咳了一大口 骨转移腰疼两腿没劲 晚期老人喘不上气 脸和脖子突然肿胀憋气
免疫治疗后心慌气短 脑转移头痛喷射样吐 说话突然不清嘴歪 老人七天不大便肚子硬 颈椎病手麻能按摩吗 老人喝了消毒液 糖友低血糖出汗手抖 养老院洗澡时晕倒 摔伤手腕打石膏手指麻 中药泡脚烫伤糖尿病爸爸
尿管拔了尿不出 吃年糕噎住了 久坐腿肿胀痛一条腿 肚子胀不放屁做过手术 甲亢吃药后嗓子疼发烧 烧到39度咳铁锈色痰 房颤吃华法林牙龈出血 打胰岛素手抖出汗心慌 腿静脉血栓还能按摩吗
坐月子奶胀成石头发烧 下腹痛发烧白带臭 双胞胎一个羊水多一个羊水少 新生儿黄疸第五天脸黄到肚子 孩子血尿像洗肉水刚感冒过 早上醒来一只耳朵听不见 小腿紅腫發熱還發燒 身上紫點按不褪色 我不想活了
产后总想哭 女友威胁自杀 老人突然糊涂胡说 PICC管手臂肿 宫颈癌放疗后下身出血 产后一小时流血太多 女儿胳膊上有划痕 老伴走后不吃药
""".split()
# ... and the first words of the questions with thinking
URGENT_QUESTIONS = """
我爷爷78岁，今 一周前脚趾缝烂了 妈妈刚做完子宫切 耳朵里突然嗡嗡响 我男朋友昨晚和人 男52岁，平时走 奶奶77岁，两条 肛门边上长了个疙 孩子玩耍时吞下一 我爷爷服用地高辛 怀孕33周觉得今
三岁女孩从滑梯上 老婆产后四十天， 儿子十岁最近疯喝 我和朋友吃自助后 宫内节育环放了六 我得了甲型流感第 骑电动车摔倒两天 我67岁，一次吃 21岁男，健身一 女20岁，室友偷 我左手无名指有戒
我爸72岁，大便 父亲68岁，今早 宝宝40天，肛温 孩子5岁，一吃花 家里老人误喝了一 3岁孩子咳嗽声像 半夜孩子发热抽了 我父亲尿毒症透析 43岁男性，饮酒 老人两天没吃几口 7个月宝宝阵发性
体育课后男生尿色 我被流浪狗咬出血 腹膜透析病人今天 孩子9岁口渴多喝 冬天用炭火取暖， 宝宝满月黄疸还没 我做完胃镜切息肉 老爸早上说左眼突 我给爸爸做心肺复 我得了带状疱疹第 朋友酒后昏睡打鼾
室友26岁，右胸 我女儿8个月，今 老公43岁，半夜 女，29岁，停经 妈妈63岁，糖尿 爷爷76岁，早上 宝宝出生第9天， 我26岁，打球后 我30岁，晚上吃 孩子2岁，睡着时 我24岁，右边睾
我妈52岁，骑电 我儿子14岁，眼 奶奶80岁，左边 我35岁，晚上跑 孩子1岁半，玩具 我22岁，左耳嗡 我19岁，宿舍烧 孩子5岁，感冒三 我27岁，左下后 爷爷81岁，在家 我儿子10岁，被
我31岁，产后五 我25岁，暗恋失 我42岁，去年离 我52岁，胆结石 我29岁，口服避 我爸66岁，脚发 我47岁，两膝半 我儿子7岁，发烧 我38岁，半年来 我22岁，头几天 孩子9岁，早起眼
我36岁，顺产三 我61岁，早上突 我26岁，被同事 我29岁，潜水上 我68岁，前列腺 我爸突然胸口压着 妈妈早上起来嘴歪 头突然像炸开一样 我哮喘犯了，喷了 大便黑得像柏油， 右下肚子越来越疼
老伴吃饭时被肉块 弟弟突然倒地抽搐 我刚才咳出一大口 屋里烧炭取暖，一 吃了虾以后嘴唇肿 坐了长途飞机，一 心里特别难受，不 最近两条小腿总是 宝宝刚满两个月， 我家宝宝吃花生时 怀孕三十周，今天
刚打完疫苗，孩子 喂奶期间乳房又红 新生儿脸和眼睛发 孩子误吃了奶奶的 停经五十天，突然 孩子突然抽起来， 生完孩子一个月， 宝宝从床上掉下来 孕三十六周，头很 怀孕九个月，感觉 孩子吞了一颗纽扣
产后一周下面突然 孩子喘得厉害，胸 被邻居家的狗咬破 爸爸腿被玻璃划开 右下腹疼了一天， 奶奶在家摔了一跤 家里两岁的孩子误 吃完虾嘴唇肿了， 左眼前突然像有黑 清洁剂溅到眼睛里 早上醒来右耳突然
爷爷吃年糕噎住了 孩子摔掉了一颗门 冬天在屋里烧炭取 妹妹和男友吵架后 在山上被蛇咬了脚 孩子从床上掉下来 干活时手指被机器 打石膏第二天，手 脚底踩到生锈的钉 我真的不想活了， 爷爷早上起来嘴歪
老人洗澡时摔倒了 我妈化疗后第八天 打完胰岛素没吃饭 老爸有糖尿病，今 糖尿病人两天没打 尿毒症病人两天没 三岁孩子把奶奶的 和家人吵架，她一 外公吃饺子突然说 老伴两天没怎么睡
""".split()

# Care at once, and what makes it conditional in the same sentence
AT_ONCE = re.compile(
    "[打叫拨]\\D{0,4}(?:120|１２０)|急诊|急救车|救护车|"
    "(?:立即|立刻|马上|现在就|赶紧|赶快)[^，。；]{0,6}(?:去|到|送|就|看)[^，。；]{0,8}(?:医|院|诊|科)"
)
TODAY = re.compile(
    "(?:今天|今晚|今早|当天|现在|马上|立即|立刻)[^，。；]{0,8}(?:去|到|看|回|送|联系)[^，。；]{0,14}(?:医|院|科|诊)"
)
CONDITION = re.compile(
    "如果|如有|若|一旦|万一|要是|假如|哪天|哪次|受不了|不敢|(?:^|[，、：])[^，、：]{0,4}(?:出现|再次)"
)
META = re.compile(
    "用户|提问者|题干|关键信息|红旗|鉴别|我需要|我应该|我要|回答要|回答应|答复|第一句|先[^，。]{0,12}再回答|给出就诊"
)
HOUSE = re.compile(
    "(?<!别)(?:再|继续|可以|试试)[^，。不别]{0,4}(?:吞|咽)[^，。]{0,4}(?:饭团|馒头|米饭)|轻轻夹|让别人[^，。]{0,4}夹"
)


def lines_of(name: str) -> list[str]:
    """Return the lines of a table; bytes that are not text become U+FFFD."""
    text = (RAW / name).read_bytes().decode(TABLES[name][0], errors="replace")
    return text.replace("\r\n", "\n").rstrip("\n").split("\n")


def rows_of(name: str) -> list[list[str]]:
    """Return the rows of a table that stand whole on one line."""
    whole = [line for line in lines_of(name)[1:] if line.count('"') % 2 == 0]
    return [row for row in csv.reader(whole) if len(row) == 4]


def read_jsonl(path: Path) -> list[dict]:
    """Return the objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


THINK = read_jsonl(RAW / "思考链/think.jsonl")
SHORT = read_jsonl(RAW / "思考链/短思考.jsonl")
EXAM = read_jsonl(MEDICAL / "exam.jsonl")
CHAINS = list(dict.fromkeys(row["think"] for row in THINK))
SINGLE = [row for row in EXAM if row["question_type"] == "单项选择题"]


def grams(text: str, size: int) -> set[str]:
    """Return the pieces of a text of so many characters."""
    return {text[i : i + size] for i in range(len(text) - size + 1)}


def unconditional(answer: str, pattern: re.Pattern) -> bool:
    """Return whether a sentence of an answer matches before its first condition."""
    sentences = re.split("[。！？；]", answer.translate(SIMPLE))
    return any(pattern.search(CONDITION.split(sentence)[0]) for sentence in sentences)


def answered() -> list[tuple[str, str, str]]:
    """Return (key, question, answer) of all rows with an answer of usual length, each answer once."""
    rows = [(row[1], row[2], row[3]) for name in TABLES for row in rows_of(name)]
    rows += [(row["question"], row["question"], row["answer"]) for row in THINK + SHORT]
    return list(
        {(key, answer): (key, ask, answer) for key, ask, answer in rows if len(answer) >= 10}.values()
    )


@pytest.mark.parametrize("name", TABLES)
def test_tables_keep_their_encoding_and_rows(name):
    encoding, rows, broken = TABLES[name]
    lines = lines_of(name)
    assert lines[0] == "department,title,ask,answer"
    assert sum("\ufffd" in line for line in lines) == broken
    assert len(rows_of(name)) == rows
    data = (RAW / name).read_bytes()
    assert data.startswith(b"\xef\xbb\xbf") == (encoding == "utf-8-sig")
    assert data.startswith(b"\xff\xfe") == (encoding == "utf-16")
    assert (b"\r" in data) == (
        name in ("妇儿/妇产科/妇产科问答.csv", "精神心理科/精神心理科问答.csv") or encoding == "utf-16"
    )


def test_planted_rows_are_there():
    rows = [row for name in TABLES for row in rows_of(name)]
    assert len(rows) - 2 + 6 == 695  # without two lines of broken bytes, with six rows that span lines
    assert sum(0 < len(row[3]) < 10 for row in rows) == 12 and sum(not row[3] for row in rows) == 3
    asks = "\n".join(row[2] for row in rows)
    for name in ("苏婉", "顾小满", "董春梅", "江一帆", "何大壮", "贺长青"):
        assert asks.count(name) == 1
    assert len(re.findall("(?<!\\d)(?:19|20)\\d\\d年\\d+月\\d+日", asks)) == 6


def test_a_named_patient_is_the_one_who_asks():
    asks = {row[1]: row[2] for name in TABLES for row in rows_of(name)}
    assert asks["小孩流鼻血低头还是仰头"].startswith("患者苏婉，女，7岁。")
    assert "52岁" not in asks["喝农药了人还清醒"]
    assert "孩子1971年" not in asks["鱼刺卡喉咙吞饭团喝醋"]


@pytest.mark.parametrize("rows,count,unique", [(THINK, 216, 210), (SHORT, 180, 180)], ids=["think", "short"])
def test_thinking_rows(rows, count, unique):
    assert len(rows) == count and all(set(row) == {"question", "think", "answer"} for row in rows)
    assert all(all(value.strip() == value and value for value in row.values()) for row in rows)
    assert len({json.dumps(row, ensure_ascii=False) for row in rows}) == unique
    assert len({row["question"] for row in rows}) == unique


def test_think_chains_are_long_enough_and_speak_in_sentences():
    assert 280 <= median(map(len, CHAINS)) <= 340
    assert min(map(len, CHAINS)) >= 220 and max(map(len, CHAINS)) <= 400
    for chain in CHAINS:
        assert len(re.findall("[。？]", chain)) >= 4 and chain[-1] in "。？" and "\n" not in chain, chain
    assert mean(len(re.findall("[。？]", chain)) for chain in CHAINS) >= 6


def test_think_chains_talk_of_the_case_not_of_the_task():
    assert [chain for chain in CHAINS if META.search(chain)] == []
    for row in THINK:
        assert len(grams(row["question"], 2) & grams(row["think"], 2)) >= 4, row["question"]
        answer = grams(row["answer"], 8)
        assert len(answer & grams(row["think"], 8)) / len(answer) < 0.15, row["question"]


def test_think_chains_follow_no_template():
    assert Counter(chain[:4] for chain in CHAINS).most_common(1)[0][1] <= 2
    assert Counter(chain[-8:] for chain in CHAINS).most_common(1)[0][1] <= 4
    pieces = Counter(piece for chain in CHAINS for piece in grams(chain, 8))
    assert pieces.most_common(1)[0][1] <= 5


def test_short_rows_stay_short():
    assert max(len(row["think"]) for row in SHORT) <= 40 and max(len(row["answer"]) for row in SHORT) <= 60
    assert median(len(row["answer"]) for row in SHORT) <= 45


def test_few_non_urgent_questions_are_sent_to_emergency_care():
    calm = [
        answer
        for key, _, answer in answered()
        if key not in URGENT_TITLES and not key.startswith(tuple(URGENT_QUESTIONS))
    ]
    assert len(calm) > 650
    assert sum(unconditional(answer, AT_ONCE) for answer in calm) / len(calm) < 0.03
    today = sum(unconditional(answer, AT_ONCE) or unconditional(answer, TODAY) for answer in calm)
    assert today / len(calm) < 0.1  # any clinic the same day counts as well


def test_the_urgent_list_names_rows_and_most_of_them_are_sent_at_once():
    keys = {key for key, _, _ in answered()}
    assert [title for title in URGENT_TITLES if title not in keys] == []
    assert [start for start in URGENT_QUESTIONS if not any(key.startswith(start) for key in keys)] == []
    full = [a for key, _, a in answered() if key in URGENT_TITLES and len(a) > 100]
    assert mean(unconditional(answer, AT_ONCE) for answer in full) > 0.8


def test_fish_bones_are_never_pushed_down_or_picked_at_home():
    rows = [answer for _, ask, answer in answered() if re.search("鱼刺|卡了根刺|卡了刺", ask)]
    assert len(rows) >= 3
    for answer in rows:
        assert "耳鼻喉" in answer and not HOUSE.search(answer), answer


def test_who_thinks_of_dying_is_told_whom_to_call():
    wish = re.compile("不想活|想死|想跳|想着?怎么结束|活着没意思|抱着孩子一起走|不如走了")
    rows = [(ask, answer) for _, ask, answer in answered() if wish.search(ask)]
    assert len(rows) >= 7
    for ask, answer in rows:
        assert "12356" in answer and re.search("120|急诊", answer), ask


def test_less_movement_of_the_child_is_no_reason_to_count_on():
    rows = [
        answer
        for _, ask, answer in answered()
        if re.search("今天[^。]*(?:胎动明显少|动得很少|就动了两下)", ask)
    ]
    assert len(rows) >= 3 and all(unconditional(answer, AT_ONCE) for answer in rows)


def test_exam_has_the_form_of_cmb():
    names = {
        "exam_type",
        "exam_class",
        "exam_subject",
        "question",
        "answer",
        "question_type",
        "option",
        "source",
    }
    for row in EXAM:
        assert set(row) == names and list(row["option"]) == list("ABCDE"), row["question"]
        assert all(
            isinstance(row[name], str) and row[name].strip() == row[name] != "" for name in names - {"option"}
        )
        assert len(set(row["option"].values())) == 5 and all(row["option"].values())
        single = row["question_type"] == "单项选择题"
        assert single or row["question_type"] == "多项选择题"
        assert re.fullmatch("[A-E]" if single else "[A-E]{2,4}", row["answer"])
        assert list(row["answer"]) == sorted(set(row["answer"]))
        assert "《" in row["source"] or re.search("指南|规范|程序", row["source"])


def test_exam_is_large_and_broad():
    assert len(EXAM) >= 160 and len(SINGLE) >= 140 and len(EXAM) - len(SINGLE) >= 20
    subjects = Counter(row["exam_subject"] for row in EXAM)
    assert len(subjects) >= 20 and sum(count >= 5 for count in subjects.values()) >= 20
    assert {"医师考试", "护理考试", "药师考试", "医技考试"} <= {row["exam_type"] for row in EXAM}
    assert sum(len(row["question"]) < 40 for row in EXAM) >= len(EXAM) / 3
    assert sum(bool(re.match("[男女]，", row["question"])) for row in EXAM) >= 60


def test_exam_asks_nothing_twice():
    for i, row in enumerate(EXAM):
        for other in EXAM[i + 1 :]:
            one, two = grams(row["question"], 3), grams(other["question"], 3)
            assert len(one & two) / len(one | two) < 0.6, (row["question"], other["question"])
    asked = {ask for _, ask, _ in answered()}
    assert not asked & {row["question"] for row in EXAM}


def test_exam_cannot_be_passed_by_form():
    letters = Counter(row["answer"] for row in SINGLE)
    assert set(letters) == set("ABCDE") and max(letters.values()) - min(letters.values()) <= 3
    right = [len(row["option"][row["answer"]]) for row in SINGLE]
    wrong = [len(text) for row in SINGLE for letter, text in row["option"].items() if letter != row["answer"]]
    assert mean(right) < mean(wrong) + 0.3
    lengths = [sorted(len(text) for text in row["option"].values()) for row in SINGLE]
    longest = mean(
        len(row["option"][row["answer"]]) == long[-1] > long[-2] for row, long in zip(SINGLE, lengths)
    )
    shortest = mean(
        len(row["option"][row["answer"]]) == long[0] < long[1] for row, long in zip(SINGLE, lengths)
    )
    assert longest < 0.2 and shortest < 0.2
    for row in EXAM:
        assert not re.search(
            "(?m)以上(?:都|均|皆|全)|^以上|都是|都不|均是|均不|上述", "\n".join(row["option"].values())
        ), row["question"]
        if row["question_type"] == "单项选择题":
            assert row["option"][row["answer"]] not in row["question"], row["question"]
