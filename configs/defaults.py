"""Every configuration leaf with its default and its meaning; a config file states differences only.

`get_config()` returns an unlocked copy; `train.py` locks it before overrides are applied, so an
unknown key is refused with the nearest real one.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """All sections, in the order in which a run uses them."""
    config = ml_collections.ConfigDict()
    # Every random number of a run derives from it: initialisation, data order, noise.
    config.seed = 0
    config.data = _data()
    config.canvas = _canvas()
    config.topology = _topology()
    config.backbone = _backbone()
    config.model = _model()
    config.loop = _loop()
    config.decoder = _decoder()
    # What of the backbone trains beside the loop: full (nothing), half (time embedding and output
    # layers), none (also the patch embedding), unfrozen (everything).
    config.freeze = "full"
    config.loss = _loss()
    config.optim = _optim()
    config.train = _train()
    config.mesh = _mesh()
    config.eval = _eval()
    return config


def _data() -> ml_collections.ConfigDict:
    data = ml_collections.ConfigDict()
    # Folder of an RLDS dataset (it holds features.json), or "embedded" for the simulated default;
    # "embedded:pretrain" is the larger one with varied colours and shapes.
    data.root = "embedded"
    # How the dataset is to be read: "auto" knows BridgeData V2 and OXE's `bridge` by their
    # features.json; else a Python file with a DATASET of its own (docs/data.md).
    data.declaration = "auto"
    # Several datasets in place of data.root: ((name, weight, root), ...), each with a declaration
    # of its own as a fourth where "auto" is not enough; weights sum to 1.
    data.mixture = ()
    # Members whose actions or states differ: same (refused), or pad (dimensions are put together by
    # name; those that a robot lacks are 0 and carry no loss).
    data.mixture_actions = "same"
    # Splits to train and to validate on, such as ("train[:95%]", "train[95%:]"); () = what the
    # declaration says.
    data.splits = ()
    # Cameras that are decoded. The first is the video of the backbone, the others are regions
    # beside it.
    data.cameras = ("image_0",)
    # Frames are resized to (height, width) pixels.
    data.image_size = (64, 64)
    # Environment frames of a window, 4n + 1.
    data.frames = 9
    # Frames a second; the dataset's own rate divided by a whole number. 0 = its own.
    data.rate = 0.0
    # Frames of a clip that the VAE trains on: 1 or data.frames (train.task = vae).
    data.clip_frames = 9
    # A picture of the goal as one more region: none, last (the end of the episode), or uniform (any
    # step after the observed frames).
    data.goal = "none"
    # "language_embedding" (the dataset's own 512 numbers) or a file made by `convert text`.
    data.text = "language_embedding"
    # Whether episodes with an empty instruction are left out.
    data.skip_empty_instructions = False
    data.augment = _augment()
    # Processes that read ahead, beside the training process; 0 = two threads of its own.
    data.workers = 0
    # Windows are encoded once before the first step where there are at most so many; 0 = never.
    data.encode_once = 0
    # Folder of windows that `python -m roam_jax encode` has encoded; training then reads these and
    # no frame, and encode_once has no say. Of a mixture, a folder with one folder a member.
    data.latents = ""
    # `encode` takes every n-th start of an episode (0 = every one); training on a folder that was
    # made with another stride is refused (0 = whatever it was made with).
    data.latents_stride = 0
    # What a canvas model learns from (train.task = canvas), made as it trains: multimodal (moving
    # shapes, a hand, words and questions) or contact (when a driven disc touches others).
    data.scene = "multimodal"
    # Which questions the multimodal scene asks: chain, future, or both.
    data.questions = "both"
    # Shapes or discs of a scene beside the hand, and its first frames whose pixels are seen.
    data.objects = 5
    data.observed_frames = 2
    # Behaviour cloning (train.task = clone): the environment, its bodies (() = all of them), expert
    # episodes of each, actions that are predicted at once, and the side of square frames that are
    # seen in place of prop and goal (0 = none).
    data.environment = "reach"
    data.bodies = ()
    data.demonstrations = 200
    data.chunk = 8
    data.pixels = 0
    # What trains the video: the mean of the VAE's posterior, or a sample of it, drawn anew at every
    # step. What is observed is always the mean.
    data.posterior = "mean"
    return data


def _augment() -> ml_collections.ConfigDict:
    """Drawn anew for every window and camera, the same for all frames of it; off by default."""
    augment = ml_collections.ConfigDict()
    # Smallest share of the frame's area that a random resized crop keeps; 1 = no crop.
    augment.crop_area = 1.0
    # The crop's aspect, relative to the frame's, lies between 1 / crop_aspect and crop_aspect.
    augment.crop_aspect = 1.0
    # Largest change of brightness, in shares of the range.
    augment.brightness = 0.0
    # Contrast and saturation are multiplied by 1 - x to 1 + x.
    augment.contrast = 0.0
    augment.saturation = 0.0
    # Largest turn of the hue, in shares of the colour circle.
    augment.hue = 0.0
    return augment


def _canvas() -> ml_collections.ConfigDict:
    canvas = ml_collections.ConfigDict()
    # First latent frame that is predicted, 1 <= t_current < latent frames.
    canvas.t_current = 2
    # Robot state and reward enter as one cell a latent frame. Reward is taken as stored: leave it
    # out where a step's reward follows from that step's own action (docs/data.md).
    canvas.proprio = False
    canvas.reward = False
    # Learned cells without data or target in every thought frame, and the latent frames between
    # two thought frames.
    canvas.thought_cells = 0
    canvas.thought_period = 1
    # Positions in queries and keys, beside the backbone's own: none, relative (a learned term of
    # differences in time, row and column), rotary. Both start without effect.
    canvas.geometry = "none"
    # Regions that a canvas model predicts; () = all that its scene has. The others are left out.
    canvas.predict = ()
    # Loss weights of the graft; what weighs nothing is not computed. Proprio, reward and further
    # cameras are predicted where theirs is positive.
    canvas.visual_weight = 1.0
    canvas.camera_weight = 0.0
    canvas.action_weight = 1.0
    canvas.proprio_weight = 0.0
    canvas.reward_weight = 0.0
    return canvas


def _topology() -> ml_collections.ConfigDict:
    topology = ml_collections.ConfigDict()
    # Who reads whom among the streams of the canvas (docs/topology.md): dense, isolated, hub_spoke,
    # causal_chain, causal_temporal, causal, central_thought, cortical_hierarchy, thalamic_relay,
    # multi_agent, local_window, local_plus_sparse_global, random_matched; kinematic_tree, of a body
    # (train.task = clone); or schema, the edges of a file.
    topology.kind = "dense"
    # own: text and video attend to each other as the backbone was trained; declared: as the kind
    # has it.
    topology.backbone = "own"
    # Weight of the kind's edges by which backbone cells (text, visual) read the new cells. 0 = no
    # such edge: the grafted model then equals the backbone at initialisation.
    topology.backbone_reads_new = 0.0
    # Latent frames that causal looks back (0 = all of them); those that local_window and
    # local_plus_sparse_global look both ways (0 = the same frame alone).
    topology.window = 1
    # Far (region, frame) segments that each one reads, with local_plus_sparse_global.
    topology.links = 2
    # Kind whose number of pairs random_matched takes; any but itself and schema.
    topology.matches = "central_thought"
    # What a slower region gives between its frames, with causal and causal_temporal: hold or drop.
    topology.temporal_fill = "hold"
    # Schema file, with the kind schema alone: its edges on the regions that `describe` prints.
    topology.schema = ""
    # Of what local_plus_sparse_global and random_matched draw.
    topology.seed = 0
    return topology


def _backbone() -> ml_collections.ConfigDict:
    backbone = ml_collections.ConfigDict()
    # Folder made by `python -m convert import`, or "tiny" for the small pretrained weights that
    # come with the package.
    backbone.path = ""
    # Sizes of a transformer from scratch (train.task = video).
    backbone.scratch = ml_collections.ConfigDict()
    backbone.scratch.layers = 6
    backbone.scratch.heads = 4
    backbone.scratch.head_dim = 32
    backbone.scratch.time_embed_dim = 64
    return backbone


def _model() -> ml_collections.ConfigDict:
    """A canvas model from scratch (train.task = canvas or clone)."""
    model = ml_collections.ConfigDict()
    # Cells are so wide; blocks differ and have so many heads.
    model.width = 64
    model.depth = 3
    model.heads = 4
    # How a region's cells become what it predicts: linear, mlp, or attention (over all cells).
    model.decoder = "mlp"
    # Regions with a decoder of their own, ((region, decoder), ...).
    model.region_decoders = ()
    return model


def _loop() -> ml_collections.ConfigDict:
    loop = ml_collections.ConfigDict()
    # How often every block is applied.
    loop.rounds = 3
    # What runs in rounds: every block on its own (block), or all blocks together (stack; canvas
    # model alone).
    loop.over = "block"
    # identity | sigmoid | off; see docs/loops.md.
    loop.gate = "identity"
    # round: one gate a round and block; token: one for each token as well.
    loop.gate_scope = "round"
    # What every round adds of the cells before the first one: none, or them times one learned
    # number (scalar) or vector (channel) a round, which starts at 0.
    loop.reinject = "none"
    # learned: every cell has a learned chance to stop after each round (eval.exit_threshold); none.
    loop.halting = "none"
    # Gradients flow through so many of the last rounds, earlier ones count as identity; 0 = all.
    loop.backprop_rounds = 0
    # The deepest round teaches a randomly chosen earlier one, so that fewer rounds may be asked
    # for.
    loop.self_distillation = False
    # How the inverse temperature of attention rises from 1 in the first round: none, linear,
    # exponential, cosine; and where it ends in the last (not read with none).
    loop.sharpening = "none"
    loop.final_inverse_temperature = 4.0
    # Steps from which one more round runs: (1000, 2000) with 3 rounds is 1 round up to step 999,
    # then 2, and 3 from step 2000 on. () = all rounds from the start.
    loop.curriculum = ()
    return loop


def _decoder() -> ml_collections.ConfigDict:
    decoder = ml_collections.ConfigDict()
    # From the smallest to the largest; see docs/graft.md.
    # pooled: mean of the backbone output -> the one action at t_current.
    # per_frame: mean of each predicted frame of it -> the frame's four actions.
    # tokens: learned queries in the future-action cells -> a chunk.
    # tokens_diffused: noised actions in these cells, denoised in eval.action_steps steps.
    # cross_attention: one query an action reads the activations of decoder.blocks.
    decoder.kind = "tokens"
    # Blocks whose activations cross_attention reads; negative numbers count from the last.
    decoder.blocks = (-1,)
    return decoder


def _loss() -> ml_collections.ConfigDict:
    loss = ml_collections.ConfigDict()
    # Share of a batch's rows whose future is drawn at t = 999 (pure noise), the deployable setting.
    loss.deploy_fraction = 0.5
    # What modulates the observed frames: the row's timestep (global), or a clean one (zero).
    loss.clean_timestep = "global"
    # Share of rows whose observed frames enter clean; the others are noised and learned as well
    # (video pretraining only; 1 = always clean).
    loss.observed_fraction = 1.0
    # Share of the diffused regions of a canvas model that is noised, drawn row by row; the others
    # enter clean, as inputs (1 = all are noised). At least one of a row is.
    loss.noised_fraction = 1.0
    # Weights of a canvas model's regions, ((region, weight), ...); 1 where none is given.
    loss.weights = ()
    # Further weights: fixed (1), uncertainty (learned variances), gradnorm (equal gradient norms at
    # the last cells; gradnorm_alpha > 0 favours regions that learn slower).
    loss.balance = "fixed"
    loss.gradnorm_alpha = 0.0
    # Regions whose loss trains their decoder alone.
    loss.decoder_only = ()
    # Weight of the mean number of rounds that cells run, with loop.halting = learned.
    loss.ponder = 0.01
    return loss


def _optim() -> ml_collections.ConfigDict:
    optim = ml_collections.ConfigDict()
    # Peak learning rate of AdamW, reached after warmup_steps, then a cosine down to
    # final_lr_fraction of it at train.steps.
    optim.lr = 1e-3
    optim.warmup_steps = 100
    optim.final_lr_fraction = 0.1
    # Applies to matrices only: never to gates, round embeddings, norms and biases.
    optim.weight_decay = 1e-4
    # Gradients are scaled down to this global norm.
    optim.clip_norm = 1.0
    optim.b1 = 0.9
    optim.b2 = 0.99
    optim.eps = 1e-8
    # An average of what trains is kept beside it, ema <- ema_decay ema + (1 - ema_decay) new; 0 =
    # none.
    optim.ema_decay = 0.0
    return optim


def _train() -> ml_collections.ConfigDict:
    train = ml_collections.ConfigDict()
    # graft (loops and actions on a frozen backbone) | video (backbone pretraining) | vae | canvas
    # (a canvas model from scratch) | clone (the same, of an expert's actions on several bodies).
    train.task = "graft"
    train.steps = 10_000
    # Windows of a step, over all devices; they pass through the model in so many parts, one after
    # the other, as one batch.
    train.batch_size = 8
    train.accumulate = 1
    # What the backward pass of a looped model finds kept, from the most memory to the least: all,
    # dots (products with weights), layers (what each layer adds), blocks (what enters a round); the
    # rest is computed again (docs/train.md).
    train.remat = "layers"
    # Compute dtype of a backbone: bfloat16, float32, or auto (bfloat16 on accelerators). What
    # trains is kept in float32 always.
    train.dtype = "auto"
    # Steps between lines of metrics.jsonl, checkpoints, and validation (0 = never).
    train.log_every = 10
    train.save_every = 500
    train.eval_every = 0
    # Checkpoints kept: the last ones; the best by a metric (max or min), for which every evaluated
    # step is saved; and one every so many hours (0 = none).
    train.keep = 2
    train.keep_best = 0
    train.best_metric = "eval/action_mse"
    train.best_mode = "min"
    train.keep_hours = 0.0
    # An update is refused where loss or gradient is not finite, or the gradient's norm is above
    # spike_factor times its running mean (0 = no limit). After so many refused in a row the run
    # goes back to its last checkpoint, with the data that follows; after so many times it stops.
    train.spike_factor = 0.0
    train.refusals = 3
    train.rollbacks = 2
    # Project of Weights & Biases that the numbers go to as well; "" = none.
    train.wandb = ""
    # Steps whose trace JAX's profiler writes, such as "100:103"; "" = none. SIGUSR2 asks for three.
    train.profile = ""
    # Folder of compiled programs that later starts find: a path, "" = none, or auto (on
    # accelerators, in the cache).
    train.compile_cache = "auto"
    return train


def _mesh() -> ml_collections.ConfigDict:
    mesh = ml_collections.ConfigDict()
    # Devices along each axis; -1 = all that remain (docs/scaling.md). The batch is split over data
    # and fsdp, large parameters over fsdp; the cells of long canvases over sequence; heads and
    # hidden units over tensor.
    mesh.data = -1
    mesh.fsdp = 1
    mesh.sequence = 1
    mesh.tensor = 1
    return mesh


def _eval() -> ml_collections.ConfigDict:
    evaluation = ml_collections.ConfigDict()
    # Windows of each split that are measured, spread evenly over it; 0 = all.
    evaluation.windows = 64
    evaluation.batch_size = 8
    # Denoising steps of the decoder tokens_diffused.
    evaluation.action_steps = 10
    # Equal buckets of timesteps for the v-prediction loss.
    evaluation.buckets = 5
    # With loop.halting = learned: cells stop once their chance to have stopped reaches this, above
    # 0 and at most 1; 0 = all rounds run.
    evaluation.exit_threshold = 0.0
    # Evaluate the average that optim.ema_decay keeps, where there is one.
    evaluation.ema = True
    # Resamples of the bootstrap interval over episodes.
    evaluation.resamples = 1000
    # Sampled continuations (eval.py --metrics video): windows of each split (0 = all), denoising
    # steps, and the sampler, ddim or dpm.
    evaluation.video_windows = 16
    evaluation.video_steps = 50
    evaluation.video_sampler = "ddim"
    # Closed loop (eval.py --metrics rollout): unseen starts that are played of each body, and the
    # actions of a chunk that are carried out before the next one is predicted.
    evaluation.episodes = 200
    evaluation.replan = 4
    # Whether overlapping chunks are averaged, the i-th oldest with weight exp(-ensemble_decay i);
    # else the newest counts alone.
    evaluation.ensembling = False
    evaluation.ensemble_decay = 0.1
    return evaluation
