/*
 * What browser.md does: a generator runs in the reader's browser, without a server.
 *
 * The fragment of the address is all that the page keeps: `view` is read from it, and changes are written to it. Its
 * names, and the latents that they stand for, are those of `dcgan explore` (dcgan/explore/_view.py), so that
 * `?model=faces&seed=7` there is `#model=faces&seed=7` here. Only the walk is another: it leads from the picture to one
 * image, `to`, and `at` is how far.
 *
 * This is a classic script, and loads others, since a browser that has opened the page from disk lets it neither import
 * modules nor fetch files. .ci/browser_page.py writes those files.
 *
 * Shapes: N latents, Z latent length, K channels, H×W image size. A 64-bit seed is [high, low], of 32 bits each.
 */
(() => {
  "use strict";

  const SHOWN = 24; // images of a seed to choose from
  const REACH = 10; // how far to go along a direction; latents of a hundred normal numbers have length 10
  const WAYS = 2; // directions, of the four of dcgan explore
  const WALK_SECONDS = 4; // from one end to the other
  const LAST = Number.MAX_SAFE_INTEGER; // the largest seed
  const FOLDER = new URL("browser/", document.currentScript.src);

  // ---- Latents: those that Python draws from the same seeds, up to rounding (dcgan/latents.py, and below it PyTorch)

  const BLOCK = 256; // latents are drawn in whole blocks

  const split = (number) => [Math.floor(number / 2 ** 32), number >>> 0];

  /** Hash two 64-bit words to one, as derive_seed does: by NumPy's SeedSequence (O'Neill, 2015). */
  function deriveSeed(first, second) {
    const hashing = (constant, factor) => (word) => {
      word ^= constant;
      constant = Math.imul(constant, factor);
      word = Math.imul(word, constant);
      return word ^ (word >>> 16);
    };
    const absorb = hashing(0x43b0d7e5, 0x931e8875);
    const pool = [...first, ...second].map(absorb);
    for (let source = 0; source < 4; source++) {
      for (let target = 0; target < 4; target++) {
        if (source === target) continue;
        const mixed = Math.imul(0xca01f9dd, pool[target]) - Math.imul(0x4973f715, absorb(pool[source]));
        pool[target] = mixed ^ (mixed >>> 16);
      }
    }
    const [low, high] = pool.map(hashing(0x8b51f9dd, 0x58f38ded));
    return [high >>> 0, low >>> 0];
  }

  /** Return a function that returns 32 random bits: MT19937 (Matsumoto and Nishimura, 1998), PyTorch's on the CPU. */
  function mersenneTwister(seed) {
    const state = new Uint32Array(624);
    state[0] = seed;
    for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
    let next = 624;
    return () => {
      if (next === 624) {
        for (let i = 0; i < 624; i++) {
          const joined = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
          state[i] = state[(i + 397) % 624] ^ (joined >>> 1) ^ (joined & 1 ? 0x9908b0df : 0);
        }
        next = 0;
      }
      let bits = state[next++];
      bits ^= bits >>> 11;
      bits ^= (bits << 7) & 0x9d2c5680;
      bits ^= (bits << 15) & 0xefc60000;
      return bits ^ (bits >>> 18);
    };
  }

  const blocks = new Map(); // the last few: a walk asks for the same ones at each of its steps

  /** Return a block of latents, (256, Z) in one array, as `torch.randn` fills it: Box and Muller, in groups of 16. */
  function drawBlock(seed, block, latentDim) {
    const key = [...seed, block, latentDim].join();
    if (blocks.has(key)) return blocks.get(key);
    const random = mersenneTwister(deriveSeed(seed, split(block))[1]);
    const values = Float32Array.from({ length: BLOCK * latentDim }, () => (random() & 0xffffff) / 2 ** 24);
    for (let group = 0; group < values.length; group += 16) {
      for (let i = group; i < group + 8; i++) {
        const radius = Math.sqrt(-2 * Math.log(1 - values[i]));
        const angle = 2 * Math.PI * values[i + 8];
        values[i] = radius * Math.cos(angle);
        values[i + 8] = radius * Math.sin(angle);
      }
    }
    if (blocks.size === 8) blocks.clear();
    blocks.set(key, values);
    return values;
  }

  /** Return latents number `start` to `start + n - 1` of a seed, an array of N arrays (Z,). */
  function seededLatents(n, latentDim, seed, start = 0) {
    return Array.from({ length: n }, (_, i) => {
      const row = (start + i) % BLOCK;
      const block = drawBlock(seed, (start + i - row) / BLOCK, latentDim);
      return block.subarray(row * latentDim, (row + 1) * latentDim);
    });
  }

  const norm = (z) => Math.hypot(...z);
  const scale = (factor, z) => z.map((value) => factor * value);
  const combine = (a, x, b, y) => x.map((value, i) => a * value + b * y[i]); // a·x + b·y

  /** Return the point at a share `t` of the arc from `a` to `b`, as dcgan.latents.slerp does. */
  function slerp(a, b, t) {
    const [normA, normB] = [norm(a), norm(b)];
    const [unitA, unitB] = [scale(1 / normA, a), scale(1 / normB, b)];
    const angle = 2 * Math.atan2(norm(combine(1, unitA, -1, unitB)), norm(combine(1, unitA, 1, unitB)));
    if (!(Math.sin(angle) > 1e-4)) return combine(1 - t, a, t, b); // no arc, or more than one
    const length = ((1 - t) * normA + t * normB) / Math.sin(angle);
    return combine(length * Math.sin((1 - t) * angle), unitA, length * Math.sin(t * angle), unitB);
  }

  // ---- Files and the network

  const scripts = {};

  /** Run one of the files of .ci/browser_page.py, once. */
  function runScript(name) {
    scripts[name] ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.onload = resolve;
      script.onerror = () => {
        delete scripts[name]; // the next try may find it
        reject(new Error(`${name} could not be loaded`));
      };
      script.src = new URL(name, FOLDER);
      document.head.append(script);
    });
    return scripts[name];
  }

  /** Undo `pack` of .ci/browser_page.py. */
  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function startRuntime() {
    ort.env.wasm.numThreads = 1; // more would need headers of a server
    ort.env.wasm.wasmBinary = await unpack(dcganFiles.wasm);
    // The runtime imports this module by its address, and from disk may import none but one that is in memory.
    const module = new Blob([await unpack(dcganFiles.module)], { type: "text/javascript" });
    ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(module) };
  }

  const sessions = {};

  async function loadNetwork(name) {
    await runScript(`${name}.js`);
    sessions[name] ??= await ort.InferenceSession.create(await unpack(dcganFiles.weights[name]));
    return sessions[name];
  }

  /** Return the images of latents, N arrays (Z,), as N of ImageData. */
  async function drawImages(network, latents) {
    const [n, latentDim] = [latents.length, latents[0].length];
    const flat = new Float32Array(n * latentDim);
    latents.forEach((z, i) => flat.set(z, i * latentDim));
    const { image } = await network.run({ z: new ort.Tensor("float32", flat, [n, latentDim]) });
    const [, channels, height, width] = image.dims;
    const area = height * width;
    return latents.map((_, i) => {
      const picture = new ImageData(width, height);
      for (let pixel = 0; pixel < area; pixel++) {
        for (let channel = 0; channel < 3; channel++) {
          const value = image.data[(i * channels + (channel % channels)) * area + pixel]; // from -1 to 1
          picture.data[4 * pixel + channel] = (value + 1) * 127.5; // which rounds and clips
        }
        picture.data[4 * pixel + 3] = 255;
      }
      return picture;
    });
  }

  // ---- What the link says

  const whole = (text) => (/^\d{1,16}$/.test(text) && Number(text) <= LAST ? Number(text) : undefined);
  const within = (low, high) => (text) =>
    /^-?\d+(\.\d+)?$/.test(text) && low <= Number(text) && Number(text) <= high ? Number(Number(text).toFixed(6)) : undefined;
  const oneImage = (text) => (/^(\d{1,15}:)?\d{1,15}$/.test(text) ? text : undefined);

  const modelName = (text) => (Object.hasOwn(dcganFiles.models, text) ? text : undefined);

  /** Each parameter: its default, how to read it, and what it must be. */
  const PARAMETERS = {
    model: { start: "faces", read: modelName, is: "one of this page's" },
    seed: { start: 0, read: whole, is: `a whole number up to ${LAST}` },
    centre: { start: "0", read: oneImage, is: "INDEX or SEED:INDEX" },
    ways: { start: 0, read: whole, is: `a whole number up to ${LAST}` },
    d0: { start: 0, read: within(-REACH, REACH), is: `a number from ${-REACH} to ${REACH}` },
    d1: { start: 0, read: within(-REACH, REACH), is: `a number from ${-REACH} to ${REACH}` },
    to: { start: "1", read: oneImage, is: "INDEX or SEED:INDEX" },
    at: { start: 0, read: within(0, 1), is: "a number from 0 to 1" },
  };
  const startView = () => Object.fromEntries(Object.entries(PARAMETERS).map(([name, { start }]) => [name, start]));

  /** Return the view of a fragment, without its "#". Names that are no parameter are left out. */
  function readView(fragment) {
    const given = new URLSearchParams(fragment);
    const view = startView();
    for (const [name, { read, is }] of Object.entries(PARAMETERS)) {
      if (!given.has(name)) continue;
      view[name] = read(given.get(name));
      if (view[name] === undefined) throw new RangeError(`${name} must be ${is}`);
    }
    return view;
  }

  /** Return the fragment of a view: the model, and what differs from the defaults. */
  function writeView(view) {
    const pairs = Object.entries(view).filter(([name, value]) => name === "model" || value !== PARAMETERS[name].start);
    return `#${pairs.map((pair) => pair.join("=")).join("&")}`;
  }

  /** Return [seed, index] of an image as the view names it. */
  function readImage(text, view) {
    const [index, seed] = text.split(":").reverse().map(Number);
    return [seed ?? view.seed, index];
  }

  /** Return the latent (Z,) of a view: its centre, moved along the directions, on the way to the walk's end. */
  function latentOf(view, latentDim) {
    const latent = (text) => {
      const [seed, index] = readImage(text, view);
      return seededLatents(1, latentDim, split(seed), index)[0];
    };
    const ways = seededLatents(WAYS, latentDim, deriveSeed(split(view.ways), [0, 1]));
    const moved = ways.reduce((z, way, i) => combine(1, z, view[`d${i}`] / norm(way), way), latent(view.centre));
    return view.at ? slerp(moved, latent(view.to), view.at) : moved;
  }

  // ---- The page

  const page = document.getElementById("browser");
  const part = (name) => page.querySelector(`[data-part="${name}"]`);
  let view;
  let complaint = ""; // about the link
  let shown = ""; // model and seed of the grid
  let writing; // the timer of the link
  let playing = false;

  /** Return a function that calls another, never twice at once: of calls that come meanwhile, one is made up for. */
  function oneAtATime(work) {
    let running = false;
    let again = false;
    return async () => {
      again = true;
      if (running) return;
      running = true;
      while (again) {
        again = false;
        await work();
      }
      running = false;
    };
  }

  function say(text, { wrong = false } = {}) {
    part("message").textContent = text;
    part("message").classList.toggle("wrong", wrong);
    part("message").hidden = !text;
  }

  function stop(error) {
    say(`The model cannot run here: ${error.message ?? error}.`, { wrong: true });
  }

  const megabytes = (count) => `${(count / 1e6).toFixed(1)} MB`;

  /** Make the page show the view. */
  const show = oneAtATime(async () => {
    try {
      const facts = dcganFiles.models[view.model];
      if (!sessions[view.model]) say(`Loading ${view.model}, ${megabytes(facts.bytes)} …`);
      const { model, seed } = view;
      const network = await loadNetwork(model);
      if (model !== view.model) return; // another was chosen meanwhile
      say(complaint, { wrong: true });
      if (shown !== `${model} ${seed}`) {
        const pictures = await drawImages(network, seededLatents(SHOWN, facts.latentDim, split(seed)));
        pictures.forEach((picture, i) => paint(part("grid").children[i].firstChild, picture));
        shown = `${model} ${seed}`;
      }
      const link = writeView(view);
      const began = performance.now();
      const z = latentOf(view, facts.latentDim);
      const [picture] = await drawImages(network, [z]);
      const took = performance.now() - began;
      paint(part("picture"), picture);
      part("facts").textContent =
        `${facts.size}×${facts.size} pixels in ${took.toFixed(0)} ms on this machine. Loaded from beside this page: ` +
        `onnxruntime-web ${dcganFiles.version}, ${megabytes(dcganFiles.bytes)}; ${model}, ${megabytes(facts.bytes)}.`;
      showControls();
      page.dataset.state = "ready";
      page.dataset.link = link; // of what is to be seen
    } catch (error) {
      stop(error);
    }
  });

  function paint(canvas, picture) {
    if (canvas.width !== picture.width) [canvas.width, canvas.height] = [picture.width, picture.height];
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  function showControls() {
    for (const name of ["model", "d0", "d1", "at"]) part(name).value = view[name];
    if (part("seed") !== document.activeElement) part("seed").value = view.seed; // who types goes on
    for (const name of ["d0", "d1"]) part(`${name}-value`).textContent = view[name].toFixed(1);
    part("at-value").textContent = `${Math.round(100 * view.at)} %`;
    const [centre, end] = [view.centre, view.to].map((text) => readImage(text, view).join(":"));
    [...part("grid").children].forEach((button, i) => {
      const name = `${view.seed}:${i}`;
      const roles = [name === centre && "the centre", name === end && "the end of the walk"].filter(Boolean);
      button.classList.toggle("centre", name === centre);
      button.classList.toggle("end", name === end);
      button.setAttribute("aria-label", [`Image ${i}`, ...roles].join(", "));
    });
    const moves = [view.d0, view.d1].map((amount, i) => amount && `${amount} along direction ${i + 1}`).filter(Boolean);
    if (view.at) moves.push(`${Math.round(100 * view.at)} % of the way to image ${end}`);
    part("picture").setAttribute("aria-label", [`Image ${centre} of ${view.model}`, ...moves].join(", "));
    part("caption").textContent = [centre, ...moves].join(", ");
  }

  /** Change the view, and soon the link: browsers slow down or refuse a page that changes its address all the time. */
  function change(values) {
    Object.assign(view, values);
    complaint = "";
    show();
    clearTimeout(writing);
    writing = setTimeout(() => history.replaceState(null, "", writeView(view)), 200);
  }

  function follow(fragment) {
    play(false);
    try {
      view = readView(fragment);
      complaint = "";
    } catch (error) {
      view = startView();
      complaint = `This link cannot be followed: ${error.message}.`;
    }
    show();
  }

  function play(wanted) {
    if (playing === wanted) return;
    playing = wanted;
    part("play").textContent = playing ? "Pause" : "Play";
    let forward = view.at < 1;
    let last;
    const step = (now) => {
      if (!playing) return;
      const way = (now - (last ?? now)) / 1000 / WALK_SECONDS;
      last = now;
      const at = view.at + (forward ? way : -way);
      if (at > 1 || at < 0) forward = !forward;
      change({ at: Number(Math.min(Math.max(at, 0), 1).toFixed(3)) });
      requestAnimationFrame(step);
    };
    if (playing) requestAnimationFrame(step);
  }

  function build() {
    for (const name of Object.keys(dcganFiles.models)) part("model").append(new Option(name));
    for (let i = 0; i < SHOWN; i++) {
      const button = document.createElement("button");
      button.type = "button";
      button.tabIndex = i ? -1 : 0;
      button.append(document.createElement("canvas"));
      button.addEventListener("click", () => choose(i));
      part("grid").append(button);
    }
    part("grid").addEventListener("keydown", moveFocus);
    part("model").addEventListener("change", () => change({ model: part("model").value }));
    part("seed").addEventListener("change", () => {
      if (part("seed").reportValidity()) change({ seed: Number(part("seed").value) });
    });
    part("next").addEventListener("click", () => change({ seed: view.seed < LAST ? view.seed + 1 : 0 }));
    for (const name of ["d0", "d1", "at"]) {
      part(name).addEventListener("input", () => {
        if (name === "at") play(false);
        change({ [name]: Number(part(name).value) });
      });
    }
    part("ways").addEventListener("click", () => change({ ways: view.ways < LAST ? view.ways + 1 : 0 }));
    part("reset").addEventListener("click", () => change({ d0: 0, d1: 0 }));
    part("play").addEventListener("click", () => play(!playing));
    addEventListener("hashchange", () => location.hash.includes("=") && follow(location.hash.slice(1)));
  }

  function choose(index) {
    const name = `${view.seed}:${index}`;
    if (page.querySelector("[name=role]:checked").value === "to") {
      change({ to: name });
    } else {
      play(false);
      change({ centre: name, at: 0 });
    }
  }

  /** Move the focus among the images by arrow keys; the Tab key passes all of them at once. */
  function moveFocus(event) {
    const buttons = [...part("grid").children];
    const columns = buttons.filter((button) => button.offsetTop === buttons[0].offsetTop).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const from = buttons.indexOf(document.activeElement);
    const next = buttons[from + step];
    if (!next) return;
    event.preventDefault();
    buttons[from].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  async function start() {
    say("Loading the runtime …");
    if (typeof WebAssembly === "undefined" || typeof DecompressionStream === "undefined") {
      throw new Error("this browser lacks WebAssembly or DecompressionStream, or has them switched off");
    }
    try {
      await runScript("runtime.js");
    } catch {
      throw new Error("this copy of the documentation was built without the runtime and the models");
    }
    await startRuntime();
    build();
    follow(location.hash.includes("=") ? location.hash.slice(1) : "");
  }

  start().catch(stop);
})();
