"""The papers, data sets and templates that fedloom builds on.

Of authors the first is named. The year is that of the publication, which may be later than the preprint's.
"""

from collections.abc import Mapping
from typing import Final

PAPERS: Final[Mapping[str, tuple[str, int, str, str]]] = {
    "mcmahan2017fedavg": (
        "McMahan, H. Brendan and others", 2017,
        "Communication-Efficient Learning of Deep Networks from Decentralized Data", "1602.05629",
    ),
    "li2020fedprox": ("Li, Tian and others", 2020, "Federated Optimization in Heterogeneous Networks", "1812.06127"),
    "karimireddy2020scaffold": (
        "Karimireddy, Sai Praneeth and others", 2020,
        "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", "1910.06378",
    ),
    "karimireddy2019feedback": (
        "Karimireddy, Sai Praneeth and others", 2019,
        "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", "1901.09847",
    ),
    "seide2014onebit": (
        "Seide, Frank and others", 2014,
        "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed Training of Speech DNNs",
        "https://www.isca-archive.org/interspeech_2014/seide14_interspeech.html",
    ),
    "wang2020fednova": (
        "Wang, Jianyu and others", 2020,
        "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", "2007.07481",
    ),
    "caldarola2022swa": (
        "Caldarola, Debora and others", 2022,
        "Improving Generalization in Federated Learning by Seeking Flat Minima", "2203.11834",
    ),
    "liu2025fedswa": (
        "Liu, Junkang and others", 2025,
        "FedSWA: Improving Generalization in Federated Learning with Highly Heterogeneous Data via Momentum-Based "
        "Stochastic Controlled Weight Averaging", "2507.20016",
    ),
    "nguyen2022fedbuff": (
        "Nguyen, John and others", 2022, "Federated Learning with Buffered Asynchronous Aggregation", "2106.06639",
    ),
    "li2021ditto": (
        "Li, Tian and others", 2021,
        "Ditto: Fair and Robust Federated Learning Through Personalization", "2012.04221",
    ),
    "dinh2020pfedme": (
        "Dinh, Canh T. and others", 2020, "Personalized Federated Learning with Moreau Envelopes", "2006.08848",
    ),
    "arivazhagan2019fedper": (
        "Arivazhagan, Manoj Ghuhan and others", 2019, "Federated Learning with Personalization Layers", "1912.00818",
    ),
    "collins2021fedrep": (
        "Collins, Liam and others", 2021,
        "Exploiting Shared Representations for Personalized Federated Learning", "2102.07078",
    ),
    "yang2024dual": (
        "Yang, Yiyuan and others", 2024, "Dual-Personalizing Adapter for Federated Foundation Models", "2403.19211",
    ),
    "cho2024hetlora": (
        "Cho, Yae Jee and others", 2024,
        "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", "2401.06432",
    ),
    "koo2025lora_a2": (
        "Koo, Jabin and others", 2025,
        "Towards Robust and Efficient Federated Low-Rank Adaptation with Heterogeneous Clients", "2410.22815",
    ),
    "wu2022fedkd": (
        "Wu, Chuhan and others", 2022,
        "Communication-efficient Federated Learning via Knowledge Distillation", "2108.13323",
    ),
    "wu2024fedbiot": (
        "Wu, Feijie and others", 2024,
        "FedBiOT: LLM Local Fine-tuning in Federated Learning without Full Model", "2406.17706",
    ),
    "malladi2023mezo": (
        "Malladi, Sadhika and others", 2023,
        "Fine-Tuning Language Models with Just Forward Passes", "2305.17333",
    ),
    "ling2024fedmezo": (
        "Ling, Zhenqing and others", 2024,
        "On the Convergence of Zeroth-Order Federated Tuning for Large Language Models", "2402.05926",
    ),
    "qin2024fedkseed": (
        "Qin, Zhen and others", 2024,
        "Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18 Kilobytes",
        "2312.06353",
    ),
    "li2025decomfl": (
        "Li, Zhe and others", 2025,
        "Achieving Dimension-Free Communication in Federated Learning via Zeroth-Order Optimization", "2405.15861",
    ),
    "shu2025ferret": (
        "Shu, Yao and others", 2025,
        "Ferret: Federated Full-Parameter Tuning at Scale for Large Language Models", "2409.06277",
    ),
    "zhang2023fedit": (
        "Zhang, Jianyi and others", 2023,
        "Towards Building the Federated GPT: Federated Instruction Tuning", "2305.05644",
    ),
    "chen2025rolora": (
        "Chen, Shuangyi and others", 2025,
        "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA", "2502.01755",
    ),
    "bai2024flexlora": (
        "Bai, Jiamu and others", 2024,
        "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources", "2402.11505",
    ),
    "wu2026raflora": (
        "Wu, Fei and others", 2026,
        "Preventing Rank Collapse in Federated Low-Rank Adaptation with Client Heterogeneity", "2602.13486",
    ),
    "wang2024flora": (
        "Wang, Ziyao and others", 2024,
        "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations", "2409.05976",
    ),
    "singhal2025fedex": (
        "Singhal, Raghav and others", 2025,
        "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large Language Models", "2410.09432",
    ),
    "lee2025fedsvd": (
        "Lee, Seanie and others", 2025,
        "FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA", "2505.12805",
    ),
    "babakniya2023slora": (
        "Babakniya, Sara and others", 2023,
        "SLoRA: Federated Parameter Efficient Fine-Tuning of Language Models", "2308.06522",
    ),
    "guo2024fedsa": (
        "Guo, Pengxin and others", 2024,
        "Selective Aggregation for Low-Rank Adaptation in Federated Learning", "2410.01463",
    ),
    "yin2018robust": (
        "Yin, Dong and others", 2018,
        "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", "1803.01498",
    ),
    "blanchard2017krum": (
        "Blanchard, Peva and others", 2017,
        "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", "1703.02757",
    ),
    "elmhamdi2018bulyan": (
        "El Mhamdi, El Mahdi and others", 2018,
        "The Hidden Vulnerability of Distributed Learning in Byzantium", "1802.07927",
    ),
    "sun2019backdoor": (
        "Sun, Ziteng and others", 2019, "Can You Really Backdoor Federated Learning?", "1911.07963",
    ),
    "pillutla2022rfa": (
        "Pillutla, Krishna and others", 2022, "Robust Aggregation for Federated Learning", "1912.13445",
    ),
    "hsu2019fedavgm": (
        "Hsu, Tzu-Ming Harry and Qi, Hang and Brown, Matthew", 2019,
        "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", "1909.06335",
    ),
    "douillard2023diloco": (
        "Douillard, Arthur and others", 2023,
        "DiLoCo: Distributed Low-Communication Training of Language Models", "2311.08105",
    ),
    "reddi2021adaptive": ("Reddi, Sashank and others", 2021, "Adaptive Federated Optimization", "2003.00295"),
    "li2019rsa": (
        "Li, Liping and others", 2019,
        "RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed Learning from Heterogeneous Datasets",
        "1811.03761",
    ),
    "bagdasaryan2020backdoor": (
        "Bagdasaryan, Eugene and others", 2020, "How To Backdoor Federated Learning", "1807.00459",
    ),
    "tolpegin2020poisoning": (
        "Tolpegin, Vale and others", 2020,
        "Data Poisoning Attacks Against Federated Learning Systems", "2007.08432",
    ),
    "efraimidis2006sampling": (
        "Efraimidis, Pavlos S. and Spirakis, Paul G.", 2006,
        "Weighted Random Sampling with a Reservoir", "https://doi.org/10.1016/j.ipl.2005.11.003",
    ),
    "xiao2023offsite": (
        "Xiao, Guangxuan and others", 2023, "Offsite-Tuning: Transfer Learning without Full Model", "2302.04870",
    ),
    "hu2021lora": (
        "Hu, Edward J. and others", 2021, "LoRA: Low-Rank Adaptation of Large Language Models", "2106.09685",
    ),
    "kalajdzievski2023rslora": (
        "Kalajdzievski, Damjan", 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", "2312.03732",
    ),
    "liu2024dora": ("Liu, Shih-Yang and others", 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", "2402.09353"),
    "liu2022ia3": (
        "Liu, Haokun and others", 2022,
        "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", "2205.05638",
    ),
    "kopiczko2023vera": (
        "Kopiczko, Dawid J. and others", 2023, "VeRA: Vector-based Random Matrix Adaptation", "2310.11454",
    ),
    "lester2021prompt": (
        "Lester, Brian and others", 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", "2104.08691",
    ),
    "liu2021ptuning": ("Liu, Xiao and others", 2021, "GPT Understands, Too", "2103.10385"),
    "li2021prefix": (
        "Li, Xiang Lisa and Liang, Percy", 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation",
        "2101.00190",
    ),
    "zhang2023adalora": (
        "Zhang, Qingru and others", 2023, "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
        "2303.10512",
    ),
    "sun2024ffa": (
        "Sun, Youbang and others", 2024,
        "Improving LoRA in Privacy-preserving Federated Learning", "2403.12313",
    ),
    "kuang2023fsllm": (
        "Kuang, Weirui and others", 2023,
        "FederatedScope-LLM: A Comprehensive Package for Fine-tuning Large Language Models in Federated Learning",
        "2309.00363",
    ),
    "li2022niid": (
        "Li, Qinbin and others", 2022, "Federated Learning on Non-IID Data Silos: An Experimental Study", "2102.02079",
    ),
    "lin2004rouge": (
        "Lin, Chin-Yew", 2004,
        "ROUGE: A Package for Automatic Evaluation of Summaries", "https://aclanthology.org/W04-1013",
    ),
    "taori2023alpaca": (
        "Taori, Rohan and others", 2023, "Stanford Alpaca: An Instruction-following LLaMA model",
        "https://github.com/tatsu-lab/stanford_alpaca",
    ),
    "gururise2023cleaned": (
        "gururise and others", 2023, "AlpacaDataCleaned", "https://github.com/gururise/AlpacaDataCleaned",
    ),
    "zheng2023vicuna": (
        "Zheng, Lianmin and others", 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", "2306.05685",
    ),
    "peng2023gpt4": ("Peng, Baolin and others", 2023, "Instruction Tuning with GPT-4", "2304.03277"),
    "conover2023dolly": (
        "Conover, Mike and others", 2023,
        "Free Dolly: Introducing the World's First Truly Open Instruction-Tuned LLM",
        "https://huggingface.co/datasets/databricks/databricks-dolly-15k",
    ),
    "cobbe2021gsm8k": ("Cobbe, Karl and others", 2021, "Training Verifiers to Solve Math Word Problems", "2110.14168"),
    "chaudhary2023codealpaca": (
        "Chaudhary, Sahil", 2023, "Code Alpaca: An Instruction-following LLaMA model for code generation",
        "https://github.com/sahil280114/codealpaca",
    ),
    "husain2019codesearchnet": (
        "Husain, Hamel and others", 2019,
        "CodeSearchNet Challenge: Evaluating the State of Semantic Code Search", "1909.09436",
    ),
    "wang2022superni": (
        "Wang, Yizhong and others", 2022,
        "Super-NaturalInstructions: Generalization via Declarative Instructions on 1600+ NLP Tasks", "2204.07705",
    ),
    "yang2023fingpt": (
        "Yang, Hongyang and others", 2023, "FinGPT: Open-Source Financial Large Language Models", "2306.06031",
    ),
    "han2023medalpaca": (
        "Han, Tianyu and others", 2023,
        "MedAlpaca: An Open-Source Collection of Medical Conversational AI Models and Training Data", "2304.08247",
    ),
    "yue2023mammoth": (
        "Yue, Xiang and others", 2023,
        "MAmmoTH: Building Math Generalist Models through Hybrid Instruction Tuning", "2309.05653",
    ),
    "xu2023wizardlm": (
        "Xu, Can and others", 2023,
        "WizardLM: Empowering Large Language Models to Follow Complex Instructions", "2304.12244",
    ),
    "rafailov2023dpo": (
        "Rafailov, Rafael and others", 2023,
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", "2305.18290",
    ),
    "chowdhury2024robust": (
        "Chowdhury, Sayak Ray and others", 2024,
        "Provably Robust DPO: Aligning Language Models with Noisy Feedback", "2403.00409",
    ),
    "azar2024ipo": (
        "Azar, Mohammad Gheshlaghi and others", 2024,
        "A General Theoretical Paradigm to Understand Learning from Human Preferences", "2310.12036",
    ),
    "zhao2023slic": (
        "Zhao, Yao and others", 2023, "SLiC-HF: Sequence Likelihood Calibration with Human Feedback", "2305.10425",
    ),
    "hong2024orpo": (
        "Hong, Jiwoo and others", 2024, "ORPO: Monolithic Preference Optimization without Reference Model",
        "2403.07691",
    ),
    "meng2024simpo": (
        "Meng, Yu and others", 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward",
        "2405.14734",
    ),
    "ethayarajh2024kto": (
        "Ethayarajh, Kawin and others", 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", "2402.01306",
    ),
    "socher2013sst": (
        "Socher, Richard and others", 2013,
        "Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank",
        "https://aclanthology.org/D13-1170",
    ),
    "wang2018glue": (
        "Wang, Alex and others", 2018,
        "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", "1804.07461",
    ),
    "warstadt2019cola": ("Warstadt, Alex and others", 2019, "Neural Network Acceptability Judgments", "1805.12471"),
    "malo2014fpb": (
        "Malo, Pekka and others", 2014,
        "Good Debt or Bad Debt: Detecting Semantic Orientations in Economic Texts", "1307.5336",
    ),
    "maia2018fiqa": (
        "Maia, Macedo and others", 2018, "WWW'18 Open Challenge: Financial Opinion Mining and Question Answering",
        "https://doi.org/10.1145/3184558.3192301",
    ),
    "bai2022hh": (
        "Bai, Yuntao and others", 2022,
        "Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback", "2204.05862",
    ),
    "cui2023ultrafeedback": (
        "Cui, Ganqu and others", 2023, "UltraFeedback: Boosting Language Models with Scaled AI Feedback", "2310.01377",
    ),
}  # fmt: skip
"""By key: (author, year, title, number on arXiv or address)."""
