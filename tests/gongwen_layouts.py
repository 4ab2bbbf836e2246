"""Documents in our own words: layouts that are right, and texts that only look like documents."""

NOTICE = """清江市卫生健康委员会关于开展消毒供应专项检查的通知
清卫医函〔2024〕36号
各县（市、区）卫生健康局，市属各医院：
为保障医疗安全，决定于4月开展消毒供应专项检查。现将有关事项通知如下：
一、检查内容
（一）器械清洗、灭菌和追溯记录是否完整。
（二）外来器械是否先验收后使用：
1.交接单是否齐全。
2.植入物是否监测合格后放行。
（三）人员培训是否覆盖全部岗位。
二、工作要求
各单位于4月20日前完成自查，问题清单和整改结果报我委医政科。
特此通知。
附件：1.专项检查评分表
2.自查情况汇总表
清江市卫生健康委员会
2024年3月5日"""
REQUEST = """南卫呈〔2024〕7号　签发人：林致远
南浦县卫生健康局关于购置移动体检车的请示
南浦县人民政府：
我县有21个行政村距最近的卫生院超过15公里，老年人健康体检率仅为58%。为方便群众就近体检，拟购置移动体检车1辆，所需经费68万元。
妥否，请批示。
南浦县卫生健康局
2024年9月12日"""
REPORT = """南卫报〔2024〕3号　签发人：林致远
南浦县卫生健康局关于第一季度传染病防控工作情况的报告
清江市卫生健康委员会：
一季度全县报告法定传染病312例，较上年同期下降8.4%。我局完成流行病学调查96起，处置学校聚集性疫情4起，均在一周内得到控制。
特此报告。
南浦县卫生健康局
2024年4月8日"""
REPLY = """清江市卫生健康委员会关于同意设立南浦县第二人民医院的批复
清卫医批〔2024〕5号
南浦县卫生健康局：
你局《关于设立南浦县第二人民医院的请示》（南卫呈〔2024〕5号）收悉。经研究，同意设立，核定床位200张，请按规定办理执业登记。
此复。
清江市卫生健康委员会
2024年6月18日"""
PUBLIC = """清江市卫生健康委员会关于暂停二次供水的通告
2024年第3号
因水箱清洗消毒，定于2024年5月11日8时至18时暂停城东片区二次供水，请居民提前储水。恢复供水后如水色异常，请先放水数分钟再使用。
清江市卫生健康委员会
2024年5月8日"""
MINUTES = """清江市卫生健康委员会2024年第5次主任办公会议纪要
（2024年5月17日）
会议听取了医疗质量提升行动的汇报，研究了二季度重点工作。会议议定，由医政科牵头建立月调度制度，6月底前完成首轮督导，结果在系统内通报。"""
ORDER = """云岭省人民政府令
第3号
《云岭省托育机构卫生评价办法》已经2024年2月20日省人民政府第12次常务会议通过，现予公布，自2024年5月1日起施行。
省长　周慕远
2024年3月1日"""
LETTER = """清江市卫生健康委员会关于商请协助做好校园诺如病毒防控工作的函
清卫疾控函〔2024〕19号
清江市教育局：
入冬以来，我市3所小学先后报告诺如病毒感染聚集性疫情。为切断校园传播，现就有关事项函商如下：
一、请贵局督促各学校落实晨午检和因病缺勤登记制度，发现聚集性呕吐、腹泻病例后2小时内报告属地疾控机构。
二、请贵局组织校医和保洁人员参加我委举办的消毒技术培训。
请予支持并函复。
清江市卫生健康委员会
2024年11月21日"""
ANSWER = """清江市卫生健康委员会关于社区养老服务设施规划意见的复函
清卫老龄函〔2024〕8号
清江市自然资源局：
贵局《关于征求社区养老服务设施专项规划意见的函》（清自然函〔2024〕40号）收悉。经研究，我委原则同意，并提出以下建议：在每个街道预留医养结合用房，面积不低于300平方米，便于社区卫生服务中心就近提供服务。
特此函复。
清江市卫生健康委员会
2024年7月9日"""
DECISION = """清江市卫生健康委员会关于表彰2023年度优质护理服务先进集体的决定
清卫发〔2024〕9号
各县（市、区）卫生健康局，委属各单位：
2023年，全市护理系统坚持以患者为中心，扎实开展优质护理服务，涌现出一批先进典型。为激励先进，经单位推荐、专家评审和公示，决定授予清江市第一人民医院神经内科等12个病区“优质护理服务先进集体”称号。
希望受表彰的集体珍惜荣誉、再接再厉。全市护理人员要以先进为榜样，规范服务行为，持续改进护理质量。
附件：2023年度优质护理服务先进集体名单
清江市卫生健康委员会
2024年5月6日"""
RESOLUTION = """南浦县人民代表大会常务委员会关于加强基层医疗卫生服务能力建设的决议
（2024年9月26日县第十八届人民代表大会常务委员会第二十次会议通过）
会议听取和审议了县人民政府关于基层医疗卫生服务能力建设情况的报告。会议认为，近年来全县乡镇卫生院标准化建设取得明显成效，但人才短缺、设备老化等问题仍然突出。会议决定，县人民政府要将乡镇卫生院设备更新纳入财政预算，健全乡村医生养老保障制度，每年向县人民代表大会常务委员会报告落实情况。"""
NOTICE_TO_ALL = """清江市卫生健康委员会公告
2024年第6号
依据《医疗机构管理条例》的规定，经审查，下列医疗机构因有效期届满未申请延续，其执业许可证予以注销，自公告之日起不得开展诊疗活动。请持有上述机构就诊资料的患者及时前往属地卫生健康局办理病历复印手续。
清江市卫生健康委员会
2024年8月14日"""
BULLETIN = """清江市卫生健康委员会关于两起医疗废物处置不当问题的通报
清卫通〔2024〕11号
各县（市、区）卫生健康局，委属各单位：
近期，我委在专项检查中发现两家医院医疗废物处置不当。现通报如下：
一、基本情况
清江市康宁医院暂存间未上锁，医疗废物登记与转移联单数量不符。石鼓县中医院将使用后的输液瓶交由个人收购。
二、处理结果
对两家医院予以通报批评，责令限期整改，并依法立案查处。
三、工作要求
各单位要举一反三，立即开展自查，完善医疗废物交接登记制度，自查情况报我委监督科。
清江市卫生健康委员会
2024年6月3日"""
OPINION = """清江市卫生健康委员会关于加强乡村医生队伍建设的意见
清卫基层发〔2024〕4号
各县（市、区）卫生健康局：
为稳定和优化乡村医生队伍，提升村级医疗卫生服务能力，现提出如下意见。
一、拓宽来源渠道
（一）实施定向培养。依托医学院校开展订单定向培养，毕业后到村卫生室服务。
（二）鼓励退休返聘。支持乡镇卫生院返聘退休医师到村卫生室坐诊。
二、提高待遇保障
（三）落实补助政策。基本公共卫生服务经费按规定足额拨付到村卫生室。
（四）完善养老保险。符合条件的乡村医生纳入企业职工基本养老保险。
三、加强组织实施
（五）压实县级责任。各县（市、区）制定实施方案，明确责任单位。
（六）强化考核评估。将乡村医生队伍建设纳入年度考核，定期通报进展。
清江市卫生健康委员会
2024年4月22日"""
BILL = """清江市人民政府关于提请审议《清江市院前医疗急救条例（草案）》的议案
清政案〔2024〕2号
清江市人民代表大会常务委员会：
为规范院前医疗急救行为，提高急救服务能力，市人民政府起草了《清江市院前医疗急救条例（草案）》。草案已经市人民政府常务会议讨论通过，现提请审议。
清江市人民政府
市长　陆守川
2024年10月8日"""
COMMUNIQUE = """2023年清江市卫生健康事业发展统计公报
2023年，全市卫生健康系统坚持以基层为重点，各项事业平稳发展。现将主要情况公布如下：
一、卫生资源
年末全市医疗卫生机构1862家，其中医院58家、基层医疗卫生机构1780家、专业公共卫生机构24家。
二、医疗服务
全年总诊疗2130万人次，住院61.3万人次，平均住院日8.1天。
三、公共卫生
居民电子健康档案建档率94.2%，适龄儿童国家免疫规划疫苗接种率保持在95%以上。
清江市卫生健康委员会
2024年5月30日"""
ISSUE = """清江市卫生健康委员会关于印发《清江市医疗废物交接登记办法》的通知
清卫医发〔2024〕21号
各县（市、区）卫生健康局，委属各医院：
现将《清江市医疗废物交接登记办法》印发给你们，请结合实际认真贯彻执行。
清江市卫生健康委员会
2024年7月15日
（此件公开发布）
清江市医疗废物交接登记办法
第一条　为规范医疗废物交接登记，防止流失，根据有关规定，制定本办法。
第二条　本办法适用于本市行政区域内医疗卫生机构医疗废物的内部交接和外部转移。
第三条　科室与暂存间交接时，双方当场称重、核对种类并签名。
第四条　登记资料保存不少于三年。
第五条　本办法自印发之日起施行。"""
PLAN = """清江市卫生健康委员会关于印发冬季流感疫苗接种工作方案的通知
清卫疾控发〔2024〕33号
各县（市、区）卫生健康局，市疾病预防控制中心：
为做好重点人群流感疫苗接种，我委制定了《冬季流感疫苗接种工作方案》，现印发给你们，请认真组织实施。
附件：冬季流感疫苗接种工作方案
清江市卫生健康委员会
2024年10月10日
抄送：清江市教育局，清江市民政局。
清江市卫生健康委员会办公室　2024年10月10日印发
附件
冬季流感疫苗接种工作方案
一、工作目标
全面提高老年人、儿童和慢性病患者的流感疫苗接种率。
二、主要措施
（一）增设临时接种点。
1.在社区卫生服务中心延长服务时间。
（1）工作日延长到晚间。
（2）双休日全天开放。
（二）加强宣传动员。"""
JOINT = """清江市卫生健康委员会
清江市教育局
清江市财政局
关于进一步加强学校卫生室建设的通知
清卫疾控发〔2024〕18号
各县（市、区）卫生健康局、教育局、财政局，市直各学校：
为保障学生健康，现就加强学校卫生室建设有关事项通知如下：
一、配齐人员设备。寄宿制学校按规定配备校医，其他学校配备专职保健教师，并配置必要的急救设备和药品。
二、落实经费保障。学校卫生室建设和运行经费纳入公用经费统筹安排。
三、加强业务指导。属地疾控机构定期开展技术培训和督导检查。
清江市卫生健康委员会　清江市教育局　清江市财政局
2024年9月3日"""
TELEGRAM = """发电单位　清江市卫生健康委员会
等级　特急·明电　　清卫明电〔2024〕6号
清江市卫生健康委员会关于做好强降雨期间医疗卫生应急工作的紧急通知
各县（市、区）卫生健康局，市急救中心，委属各医院：
据气象部门预报，未来几天我市将出现持续强降雨。为做好医疗卫生应急工作，现紧急通知如下：
一、加强值班值守。各单位严格执行领导带班和24小时值班制度，重要情况立即报告。
二、备足应急物资。对急救车辆、发电设备和药品逐一检查，确保随时可用。
三、做好灾后防病。提前储备消毒药品，组织专业人员指导饮用水消毒和环境清理。
清江市卫生健康委员会
2024年7月2日"""
TABLE = """清江市卫生健康委员会关于下达2024年健康体检任务的通知
清卫基层函〔2024〕15号
各县（市、区）卫生健康局：
为做好2024年老年人健康体检，现将任务分解下达给你们，请认真组织实施，按月报送进度。任务分配如下：
单位\t任务数（人）\t完成时限
南浦县\t12000\t2024年9月30日
石鼓县\t9800\t2024年9月30日
栗川县\t7600\t2024年10月31日
各地要加强质量控制，体检结果及时反馈本人并录入健康档案。
清江市卫生健康委员会
2024年3月28日"""
SPECIAL_MINUTES = """清江市卫生健康委员会会议纪要
〔2024〕7号
关于研究医疗废物集中处置有关问题的专题会议纪要
2024年6月12日，市卫生健康委副主任沈若川在委三楼会议室主持召开专题会议，研究医疗废物集中处置有关问题。现纪要如下：
一、会议听取了医政科关于处置能力缺口的汇报，同意启用备用处置线。
二、会议明确，由医政科牵头与市生态环境局会商，6月30日前提出收运路线调整方案。
三、会议要求，各医院加强暂存管理，超期暂存的及时报告。
出席：沈若川、韩立言、方砚秋
列席：市生态环境局有关负责同志"""
FORM = """××市卫生健康委员会关于开展手卫生专项督导的通知
×卫医函〔20××〕×号
各县（市、区）卫生健康局，委属各医院：
为降低医院感染风险，决定在全市开展手卫生专项督导。现将有关事项通知如下：
一、督导内容。重点检查手卫生设施配备、手卫生依从性监测和培训情况。
二、工作要求。各单位于×月×日前完成自查，自查报告报送我委医政科，联系人：×××，电话：××××。
××市卫生健康委员会
20××年×月×日"""
STATE = """国务院关于加强城市河道保洁工作的通知
国发〔2024〕99号
各省、自治区、直辖市人民政府，国务院各部委、各直属机构：
近年来，各地城市河道保洁工作取得明显进展，但仍有部分河道漂浮物清理不及时。现就有关事项通知如下：
一、明确责任。河道所在地人民政府对保洁工作负总责。
二、加强巡查。每周至少开展一次全面巡查，发现问题及时整改。
附件：1.河道保洁标准
2.巡查记录表
国务院
2024年3月5日"""
SUMMARY = """清江市卫生健康委员会关于同意调整南浦县急救站点布局的批复
清卫应急批〔2024〕2号
南浦县卫生健康局：
你局关于调整急救站点布局的请示（南卫呈〔2024〕11号）收悉。经研究，批复如下：
一、同意在柳沟镇增设急救站，由县人民医院负责管理。
二、请你局落实人员、车辆和值班用房，验收合格后投入使用。
清江市卫生健康委员会
2024年5月20日"""
APPOINT = """南浦县卫生健康局关于周立群等同志职务任免的通知
南卫人〔2024〕6号
各乡镇卫生院，县直各医疗卫生单位：
经局党组研究决定：
周立群同志任南浦县人民医院副院长；
免去何静澜同志的南浦县中医医院副院长职务。
请按有关规定办理任职和交接手续，及时上报备案。上述同志的任职时间从本通知印发之日起计算，试用期按规定执行。
南浦县卫生健康局
2024年8月1日"""

DOCUMENTS = {name: text for name, text in globals().items() if name.isupper() and isinstance(text, str)}


def changed(text: str, *changes: tuple[str, str]) -> str:
    """Return a text after replacements, each of something that is there."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


NUMBER_LINE = "清卫医函〔2024〕36号\n"
ADDRESSEE = "各县（市、区）卫生健康局，市属各医院：\n"
END = "清江市卫生健康委员会\n2024年3月5日"
LAYOUTS = DOCUMENTS | {
    "number above the title": NUMBER_LINE + changed(NOTICE, (NUMBER_LINE, "")),
    "no number": changed(NOTICE, (NUMBER_LINE, "")),
    "red head, urgency and copy number": "000012\n特急\n清江市卫生健康委员会文件\n" + NOTICE,
    "secret and term": "000003\n机密★1年\n特急\n清江市卫生健康委员会文件\n" + NOTICE,
    "head of three organs": "清江市卫生健康委员会\n清江市财政局\n清江市医疗保障局文件\n" + changed(NOTICE, (END, "清江市卫生健康委员会　清江市财政局\n清江市医疗保障局\n2024年3月5日")),
    "letter's head": "清江市卫生健康委员会\n" + LETTER,
    "letter's head and number above": "清江市卫生健康委员会\n清卫疾控函〔2024〕19号\n" + changed(LETTER, ("清卫疾控函〔2024〕19号\n", "")),
    "telegram with destination": changed(TELEGRAM, ("发电单位", "发往　各县（市、区）\n签批盖章　林致远\n发电单位")),
    "title on two lines": changed(NOTICE, ("委员会关于", "委员会\n关于")),
    "title on three lines": changed(NOTICE, ("委员会关于", "委员会\n关于"), ("消毒供应", "消毒供应\n")),
    "title spaced by letters": changed(NOTICE, ("专项检查的通知", "\n专 项 检 查 的 通 知")),
    "title line ends in 文件": changed(NOTICE, ("开展消毒供应专项检查的通知", "清理消毒供应规范性文件\n和开展专项检查的通知")),
    "title without the organ": changed(NOTICE, ("清江市卫生健康委员会关于", "关于")),
    "title with 《》": changed(NOTICE, ("开展消毒供应专项检查", "印发《消毒供应管理办法（试行）》")),
    "title with “ ”": changed(NOTICE, ("消毒供应专项检查", "“无烟医院”专项检查")),
    "title with years and dash": changed(NOTICE, ("消毒供应专项检查", "消毒供应专项检查（2024—2026年）")),
    "title with 、": changed(NOTICE, ("消毒供应专项检查", "东、西两区消毒供应专项检查")),
    "紧急通知": changed(NOTICE, ("检查的通知", "检查的紧急通知")),
    "补充通知": changed(NOTICE, ("检查的通知", "检查的补充通知")),
    "意见（试行）": changed(OPINION, ("建设的意见", "建设的意见（试行）")),
    "指导意见": changed(OPINION, ("建设的意见", "建设的指导意见")),
    "levels start anew": changed(OPINION, ("（三）", "（一）"), ("（四）", "（二）"), ("（五）", "（一）"), ("（六）", "（二）")),
    "two levels, one skipped": changed(OPINION, *[(f"（{han}）", f"{number}.") for number, han in enumerate("一二三四五六", 1)]),
    "only （一）": changed(OPINION, ("一、拓宽来源渠道\n", ""), ("二、提高待遇保障\n", ""), ("三、加强组织实施\n", "")),
    "only 1.": changed(NOTICE, ("一、检查内容\n", ""), ("（一）", "1."), ("（二）", "2."), ("1.交接", "（1）交接"), ("2.植入", "（2）植入"), ("（三）", "3."), ("二、工作要求\n", "")),
    "一是 二是": changed(BULLETIN, ("暂存间未上锁，", "一是暂存间未上锁，二是")),
    "decimal is no heading": changed(NOTICE, ("为保障", "3.5万名患者受益。为保障")),
    "year at the start of a line": changed(NOTICE, ("为保障", "2023年检查发现问题较多。为保障")),
    "indented paragraphs": "\n".join("　　" + line if 3 <= count <= 12 else line for count, line in enumerate(NOTICE.split("\n"))),
    "blank lines": NOTICE.replace("\n", "\n\n"),
    "no closing": changed(NOTICE, ("特此通知。\n", "")),
    "addressee over two lines": changed(NOTICE, ("卫生健康局，市属", "卫生健康局，\n市属")),
    "addressee with a note": changed(NOTICE, ("市属各医院：", "市属各医院（名单附后）：")),
    "addressee 有关单位": changed(NOTICE, (ADDRESSEE, "各有关单位：\n")),
    "通报 without addressee": changed(BULLETIN, ("各县（市、区）卫生健康局，委属各单位：\n", "")),
    "意见 without addressee": changed(OPINION, ("各县（市、区）卫生健康局：\n", "")),
    "one attachment": changed(NOTICE, ("附件：1.专项检查评分表\n2.自查情况汇总表", "附件：专项检查评分表")),
    "attachments on one line": changed(NOTICE, ("评分表\n2.", "评分表　2.")),
    "attachment that begins with a year": changed(NOTICE, ("附件：1.专项", "附件：1.2024年专项")),
    "attachment with 《》": changed(NOTICE, ("附件：1.专项检查评分表", "附件：1.《专项检查评分表》")),
    "attachment pages": NOTICE + "\n附件1\n专项检查评分表\n一、医院\n附件2\n自查情况汇总表",
    "two organs": changed(NOTICE, (END, "清江市卫生健康委员会\n清江市财政局\n2024年3月5日")),
    "short organ": changed(NOTICE, (END, "市政府\n2024年3月5日")),
    "organ's office": changed(NOTICE, (END, "清江市卫生健康委员会办公室\n2024年3月5日")),
    "organ and date far to the right": changed(NOTICE, (END, "　　　　　　　　清江市卫生健康委员会\n　　　　　　　　　　2024年3月5日")),
    "（此件公开发布）": NOTICE + "\n（此件公开发布）",
    "（联系人：…）": NOTICE + "\n（联系人：何静澜，电话：0566-4419027）",
    "抄送 and 印发": NOTICE + "\n抄送：清江市财政局，市属各单位。\n清江市卫生健康委员会办公室　2024年3月5日印发",
    "number of a reply": changed(REPLY, ("（南卫呈〔2024〕5号）", "")),
    "reply to several": changed(REPLY, ("南浦县卫生健康局：\n你局", "南浦县卫生健康局、石鼓县卫生健康局：\n你们")),
    "signer on his own line": changed(REQUEST, ("　签发人：", "\n签发人：")),
    "two signers on two lines": changed(REQUEST, ("林致远\n", "林致远\n　　　　周慕远\n")),
    "two signers on one line": changed(REQUEST, ("林致远", "林致远　周慕远")),
    "signer below the title": "南浦县卫生健康局关于购置移动体检车的请示\n南卫呈〔2024〕7号　签发人：林致远\n" + REQUEST.split("\n", 2)[2],
    "signer left open": changed(REQUEST, ("林致远", "×××")),
    "request 当否": changed(REQUEST, ("妥否，请批示。", "以上请示当否，请批复。")),
    "request for approval": changed(REQUEST, ("妥否，请批示。", "特此请示，请予批准。")),
    "报告 on others' requests": changed(REPORT, ("特此", "受理群众求助请求27件，均已答复。\n特此")),
    "公告 with number in brackets": changed(NOTICE_TO_ALL, ("2024年第6号", "（2024年第6号）")),
    "公告 第6号": changed(NOTICE_TO_ALL, ("2024年第6号", "第6号")),
    "公告 on a matter": changed(NOTICE_TO_ALL, ("委员会公告", "委员会关于注销部分医疗机构执业许可证的公告")),
    "通告 with 文号": changed(PUBLIC, ("2024年第3号", "清卫通〔2024〕3号")),
    "minutes with a date line": changed(MINUTES, ("（2024年5月17日）", "2024年5月17日")),
    "minutes with an issue": changed(SPECIAL_MINUTES, ("〔2024〕7号", "第7期")),
    "minutes with signature": MINUTES + "\n清江市卫生健康委员会办公室\n2024年5月20日",
    "order of the state": "中华人民共和国国务院令\n第999号\n《城市河道保洁条例》已经2024年2月2日国务院第25次常务会议通过，现予公布，自2024年5月1日起施行。\n总理　周慕远\n2024年3月1日\n城市河道保洁条例\n第一章　总则\n第一条　为了保护城市河道环境，制定本条例。",
    "XX as placeholder": FORM.replace("×", "X"),
    "＿ as placeholder": changed(FORM, ("〔20××〕×号", "〔2024〕＿＿号"), ("20××年×月×日", "2024年＿月＿日")),
    "____ as placeholder": changed(FORM, ("〔20××〕×号", "〔2024〕____号"), ("20××年×月×日", "2024年__月__日")),
    "number left blank": changed(NOTICE, ("〕36号", "〕　号")),
    "×× as placeholder": changed(FORM, ("〔20××〕×号", "〔20××〕××号"), ("20××年×月×日", "20××年××月××日")),
    "minutes with labelled lines": changed(MINUTES, ("（2024年5月17日）\n", "时间：2024年5月17日\n地点：委三楼会议室\n主持：林致远\n出席：韩立言、方砚秋\n")),
    "signer and co-signer": changed(REQUEST, ("林致远", "林致远　会签人：周慕远")),
    "Windows line ends": NOTICE.replace("\n", "\r\n"),
    "organ with a seal": changed(NOTICE, (END, "清江市卫生健康委员会（印章）\n2024年3月5日")),
    "court and federation": changed(NOTICE, (END, "清江市中级人民法院\n清江市妇联\n2024年3月5日")),
    "space after the number of an attachment": changed(NOTICE, ("附件：1.专", "附件：1. 专"), ("2.自查", "2. 自查")),
    "copies": NOTICE + "\n抄送：清江市财政局。\n清江市卫生健康委员会办公室　2024年3月5日印发\n共印50份",
    "fire order": "南浦县人民政府森林防火令\n第1号\n为预防森林火灾，保护人民生命财产安全，现发布命令如下：\n一、自2024年3月1日至5月31日，全县林区禁止一切野外用火。\n二、各乡镇人民政府加强巡查值守，发现火情立即报告和处置。\n县长　周慕远\n2024年2月20日",
    "bill of a governor": changed(BILL, ("清江市人民政府\n市长　陆守川", "市长　陆守川")),
    "addressee over three lines": changed(NOTICE, ("各县（市、区）卫生健康局，市属各医院：", "各县（市、区）卫生健康局，\n市疾病预防控制中心，\n市属各医院：")),
    "table in |": TABLE.replace("\t", "|"),
    "name of a person in the letter": changed(LETTER, ("清江市教育局：", "清江市第一中学：")),
}  # fmt: skip

# Rows: what was asked, what was given, and the document that was wanted.
CHECK = {
    "instruction": "起草一份通知，部署全市医院开展消毒供应专项检查。",
    "input": "清江市卫健委发，文号清卫医函〔2024〕36号，落款3月5号（今年是2024年）。发给各县市区卫健局和市属各医院。4月开始查，医院先自己查，4月20号之前查完。查三块：器械洗得干不干净、灭没灭菌、能不能追溯；外来器械验没验收；人都培训了没有。问题和整改的结果报医政科。附两张表，评分表、自查汇总表。对了，上次那个会议室的投影坏了，记得报修。",
    "output": NOTICE,
}
BUY = {
    "instruction": "县里想给老人体检，请以南浦县卫健局名义向县政府写请示，申请买体检车。",
    "input": "南卫呈〔2024〕7号，签发人林致远，2024年9月12日。全县二十一个村离卫生院远，超过15公里，老年人体检率才58%。想买一台车，六十八万。",
    "output": REQUEST,
}
SICK = {
    "instruction": "把一季度传染病防控情况写成报告，南浦县卫健局报清江市卫健委。",
    "input": "文号：南卫报〔2024〕3号；签发：林致远；4月8日，2024年。\n传染病报告312例，同比少了8.4%；流调96起；学校聚集性疫情4起都处置了，一周内控制住。",
    "output": REPORT,
}
ALLOW = {
    "instruction": "同意南浦县设立第二人民医院，请写批复。",
    "input": "南浦县卫健局来文是关于设立南浦县第二人民医院的请示，南卫呈〔2024〕5号。清江市卫生健康委员会批，清卫医批〔2024〕5号，2024年6月18日，床位200张。",
    "output": REPLY,
}
WATER = {
    "instruction": "写一则通告，城东片区二次供水要停一天洗水箱。",
    "input": "清江市卫健委2024年第3号；2024-05-11 8:00—18:00；5月8日发布；恢复后水有颜色先放几分钟",
    "output": PUBLIC,
}
OPEN = {
    "instruction": "拟一个市卫健委开展手卫生专项督导的通知，时间、文号都还没定。",
    "input": "",
    "output": FORM,
}
SCHOOL = {
    "instruction": "给市教育局发函，商请协助做好学校诺如病毒防控。",
    "input": "我们是清江市卫健委，清卫疾控函〔2024〕19号，2024年11月21日发。入冬以后三所小学报了诺如聚集性疫情。想请他们管好晨午检和缺勤登记，有聚集的2小时内报疾控；校医、保洁员来参加我们办的消毒培训。",
    "output": LETTER,
}
CLEAN_ROWS = {
    name: row
    for name, row in globals().items()
    if name.isupper() and isinstance(row, dict) and "output" in row
}


def frame(body: str, title: str = "清江市卫生健康委员会关于开展消毒供应专项检查的通知") -> str:
    """Return a body in the right frame of a notice."""
    return f"{title}\n{NUMBER_LINE}{ADDRESSEE}{body}\n{END}"


FRIDGE = "紫色的冰箱昨天吃掉了三个星期二。月亮把自行车叠成纸船，沿着楼梯流向邻居的帽子。每一只钟表都在打喷嚏，窗帘于是决定学习游泳。"
HOLLOW = "各单位要高度重视，加强组织领导，压实工作责任，明确专人负责，确保各项工作落到实处。要强化督导检查，对工作不力的予以通报批评。要认真总结经验，健全长效机制，及时报送工作情况。"
ENGLISH = "All hospitals shall carry out a thorough inspection of the sterile supply departments in April and report the results to the commission before the end of the month."
SALE = "春季大酬宾，消毒柜全场八折，买一送一，先到先得。家用消毒柜采用不锈钢内胆，品质保证，欢迎选购。现在订购另有赠品，数量有限。"
STORY = "从前有一座山，山里有一座庙，庙里有一个老和尚在讲故事。小和尚听着听着就睡着了，梦见自己变成了一只会飞的鲤鱼，飞过了九条大河。"
RECIPE = "五花肉切块冷水下锅焯水，捞出沥干。锅中放少许油，加入冰糖炒出糖色，放入肉块翻炒，加生抽老抽料酒，小火慢炖一小时后大火收汁即可出锅。"
LAST = "各单位于4月20日前完成自查，问题清单和整改结果报我委医政科。"
# name: (row, text that must not pass as clean)
GAMED = {
    "empty": (CHECK, ""),
    "one word": (CHECK, "通知"),
    "chat": (CHECK, "好的，我来帮您写这份通知，请问您需要哪些内容呢？"),
    "nonsense": (CHECK, frame(FRIDGE)),
    "nonsense in items": (CHECK, frame("现将有关事项通知如下：\n一、紫色的冰箱昨天吃掉了三个星期二。\n二、月亮把自行车叠成纸船。\n三、每一只钟表都在打喷嚏。\n特此通知。")),
    "nonsense between true facts": (CHECK, frame(f"{FRIDGE}{LAST}")),
    "hollow words": (CHECK, frame(HOLLOW)),
    "hollow words, twice as many": (CHECK, frame(HOLLOW + "\n" + HOLLOW.replace("各单位", "各地"))),
    "terms in a row": (CHECK, frame("医疗机构、督导检查、整改落实、感染防控、主体责任、长效机制、台账管理、闭环管理、信息共享、应急处置、通报批评、考核评估、属地管理、统筹协调。")),
    "english": (CHECK, frame(ENGLISH)),
    "english in the middle": (CHECK, changed(NOTICE, (LAST, LAST + ENGLISH))),
    "advertisement": (CHECK, frame(SALE)),
    "story": (CHECK, frame(STORY)),
    "recipe": (CHECK, frame(RECIPE)),
    "one sentence six times": (CHECK, frame(LAST * 6)),
    "one sentence six times, on lines": (CHECK, frame("\n".join([LAST] * 6))),
    "items that differ in numbers": (CHECK, frame("\n".join(f"{han}、各单位要在第{i}周完成第{i}批器械清洗检查并报送第{i}份结果。" for i, han in enumerate("一二三四五六", 1)))),
    "items that differ in a word": (CHECK, frame("\n".join(f"{han}、各单位要认真组织开展{what}消毒供应检查工作并报送整改结果。" for han, what in zip("一二三四", ("器械", "敷料", "内镜", "植入物"))))),
    "empty items": (CHECK, frame("现将有关事项通知如下：\n一、\n二、\n三、\n四、请认真落实，及时报送检查和整改情况，切实保障医疗安全。")),
    "items of one character": (CHECK, frame("为保障医疗安全，现将消毒供应检查有关事项通知如下：\n一、查。\n二、改。\n三、报。")),
    "loop of a clause": (CHECK, frame("为保障医疗安全，" + "请按规定办理，" * 30)),
    "loop without stops": (CHECK, frame("消毒供应检查" * 60)),
    "loop of a character": (CHECK, frame("的" * 300)),
    "cut off": (CHECK, NOTICE[:180]),
    "cut off before the date": (CHECK, NOTICE.rsplit("\n", 1)[0]),
    "cut off after the title": (CHECK, NOTICE.split("\n")[0]),
    "body missing": (CHECK, frame("特此通知。")),
    "only an introduction": (CHECK, frame("为保障医疗安全，现将消毒供应专项检查有关事项通知如下：")),
    "another kind": (CHECK, changed(NOTICE, ("检查的通知", "检查的通告"))),
    "no kind": (CHECK, changed(NOTICE, ("检查的通知", "检查的方案"))),
    "another row's document": (CHECK, LETTER),
    "another row's document, too": (BUY, REPORT),
    "a request for a report": (SICK, changed(REQUEST, ("请示", "请示"))),
    "a report that asks": (SICK, changed(REPORT, ("特此报告。", "恳请拨付防控经费，请予支持。"))),
    "invented date": (CHECK, changed(NOTICE, ("2024年3月5日", "2024年3月9日"))),
    "invented deadline": (CHECK, changed(NOTICE, ("4月20日", "4月28日"))),
    "invented number": (CHECK, changed(NOTICE, ("36号", "63号"))),
    "invented figure": (CHECK, changed(NOTICE, ("为保障医疗安全", "去年全市发生相关不良事件27起，为保障医疗安全"))),
    "invented percentage": (SICK, changed(REPORT, ("特此", "规范处置率达到97.3%。\n特此"))),
    "invented in Chinese numerals": (SICK, changed(REPORT, ("特此", "培训基层医生四百六十人次。\n特此"))),
    "invented organ": (CHECK, changed(NOTICE, ("报我委医政科", "抄送白鹭市卫生健康局"))),
    "invented person": (CHECK, changed(NOTICE, ("报我委医政科", "报我委医政科，联系人：周慕远"))),
    "invented phone": (CHECK, changed(NOTICE, ("报我委医政科", "报我委医政科，电话0566-4419027"))),
    "invented signer": (BUY, changed(REQUEST, ("林致远", "周慕远"))),
    "invented price": (BUY, changed(REQUEST, ("68万元", "86万元"))),
    "invented citation": (ALLOW, changed(REPLY, ("经研究", "根据国卫医发〔2021〕19号文件，经研究"))),
    "invented deadline in words": (ALLOW, changed(REPLY, ("请按规定", "请于三十日内按规定"))),
    "nothing given, all invented": (OPEN, changed(FORM, ("×卫医函〔20××〕×号", "清卫医函〔2023〕17号"), ("20××年×月×日", "2023年6月8日"))),
    "placeholder for a given date": (CHECK, changed(NOTICE, ("2024年3月5日", "20××年×月×日"))),
    "placeholder for a given number": (CHECK, changed(NOTICE, ("清卫医函〔2024〕36号", "×卫医函〔20××〕×号"))),
    "given facts left out": (SICK, changed(REPORT, ("312例，较上年同期下降8.4%", "有所下降"), ("96起", "多起"))),
    "input pasted": (CHECK, frame(CHECK["input"])),
    "input pasted with an introduction": (CHECK, frame("为做好有关工作，现将有关事项通知如下：\n" + CHECK["input"] + "\n请认真贯彻落实。\n特此通知。")),
    "input pasted into an open frame": (CHECK, "××市卫生健康委员会关于有关工作的通知\n×卫发〔20××〕×号\n各有关单位：\n" + CHECK["input"] + "\n请遵照执行。\n××市卫生健康委员会\n20××年×月×日"),
    "instruction pasted": (OPEN, changed(FORM, ("一、督导内容。重点检查手卫生设施配备、手卫生依从性监测和培训情况。", "一、" + OPEN["instruction"]))),
    "notes for sentences": (WATER, changed(PUBLIC, ("因水箱", "文号：2024年第3号\n主送：居民\n因水箱"))),
    "two documents": (CHECK, NOTICE + "\n" + NOTICE),
    "a document inside": (CHECK, frame(NOTICE)),
    "talk before it": (CHECK, "好的，以下是为您起草的通知：\n" + NOTICE),
    "talk behind it": (CHECK, NOTICE + "\n希望以上内容对您有帮助！"),
    "a remark behind it": (CHECK, NOTICE + "\n注意：请根据实际情况修改上述内容。"),
    "markdown": (CHECK, changed(NOTICE, ("一、检查内容", "**一、检查内容**"))),
    "markdown headings": (CHECK, changed(NOTICE, ("一、检查内容", "## 一、检查内容"))),
    "chat tokens": (CHECK, changed(NOTICE, ("特此通知。", "特此通知。<|im_end|>"))),
    "spoken": (CHECK, changed(NOTICE, ("为保障医疗安全", "咱们为了医疗安全"))),
    "spoken ending": (CHECK, changed(NOTICE, ("特此通知。", "大家赶快去查吧。"))),
    "polite": (CHECK, changed(NOTICE, (ADDRESSEE, "尊敬的各位领导：\n"))),
    "irrelevant remark kept": (CHECK, changed(NOTICE, ("特此通知。", "另外上次那个会议室的投影坏了，记得报修一下，麻烦您帮个忙。\n特此通知。"))),
    "order of a commission": (WATER | {"output": ""}, changed(ORDER, ("云岭省人民政府令", "云岭省卫生健康委员会令"))),
    "request to two": (BUY, changed(REQUEST, ("南浦县人民政府：", "南浦县人民政府、县财政局："))),
    "signature without organ": (CHECK, changed(NOTICE, ("清江市卫生健康委员会\n2024", "2024"))),
}  # fmt: skip
