"use strict";
// The page: loads the model once, then names the classes of each picture, or compares the pictures where the model has
// no classes. Everything is read from the folder of this page; text from outside is only ever set as text.

const RUNTIME = "runtime/ort.wasm.bundle.min.js";
const WASM = "runtime/ort-wasm-simd-threaded.wasm";
const MAX_PIXELS = 89478485; // as `decode_image`
const SHOWN = 3; // classes or neighbours of a picture, as `predict`
const THUMBNAIL = 264;
const COPY_AGAIN = "Copy the whole folder to the server again.";

const part = (id) => document.getElementById(id);

class Problem extends Error {} // an error whose words are meant for the reader

function show(id, text) {
  part(id).textContent = text;
  part(id).hidden = false;
}

function element(name, text = "", css = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = css;
  return made;
}

function mebibytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

// The bytes of a file in the folder of this page; `advance` is told of each part that arrives.
async function fetched(name, advance = () => {}, cache = "default") {
  let answer;
  try {
    answer = await fetch(name, { cache });
  } catch {
    throw new Problem(`The server did not send ${name}. Check the connection, then load this page again.`);
  }
  const file = name.split("?")[0];
  if (!answer.ok) throw new Problem(`The server has no file ${file} (status ${answer.status}). ${COPY_AGAIN}`);
  const parts = [];
  const reader = answer.body.getReader();
  try {
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      parts.push(piece.value);
      advance(piece.value.length);
    }
  } catch {
    throw new Problem(`The connection broke while ${file} was loaded. Load this page again.`);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function description() {
  const bytes = await fetched("encoder.json", undefined, "no-cache");
  try {
    const about = JSON.parse(new TextDecoder().decode(bytes));
    if (about.format === "simclr-engine encoder" && about.schema === 1) return about;
  } catch {
    // said below
  }
  throw new Problem(`encoder.json is not the description of a model that this page knows. ${COPY_AGAIN}`);
}

// Reads model and runtime; returns a function from the pixels of a picture to an output of the model.
async function load(about) {
  let loaded = 0;
  const advance = (count) => {
    loaded += count;
    show("state", `Loading the model: ${mebibytes(loaded)}`);
  };
  // The checksum in the address keeps a browser from pairing a model that it stored with a newer description.
  const address = `${about.file}?${about.sha256.slice(0, 16)}`;
  const [model, wasm] = await Promise.all([fetched(address, advance), fetched(WASM, advance)]);
  if (model.length !== about.bytes) {
    throw new Problem(`${about.file} has ${model.length} bytes, and should have ${about.bytes}. ${COPY_AGAIN}`);
  }
  show("state", "Preparing the model");
  const runtime = await import(`./${RUNTIME}`).catch(() => {
    throw new Problem(`The server did not send ${RUNTIME} as JavaScript. ${COPY_AGAIN}`);
  });
  Object.assign(runtime.env.wasm, { numThreads: 1, wasmBinary: wasm.buffer });
  const session = await runtime.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const output = about.probe ? "probabilities" : "features";
  const shape = [1, about.image_size, about.image_size, 3];
  const compute = async (pixels) => {
    const images = new runtime.Tensor("uint8", pixels, shape);
    return (await session.run({ [about.input.name]: images }, [output]))[output].data;
  };
  await compute(new Uint8Array(3 * about.image_size ** 2)); // the first one takes longer
  part("progress").hidden = true;
  return { compute, version: runtime.env.versions.web };
}

// The picture as the model takes it, and its centre for the page.
async function decoded(file, about) {
  const head = new Uint8Array(await file.slice(0, 26).arrayBuffer().catch(() => new ArrayBuffer(0)));
  if (isGray16(head) && about.resize.gray16.join() !== "0,65535") {
    throw new Problem("A 16-bit grey picture: this model scales its levels, which a browser cannot. Use `predict`.");
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    throw new Problem("This browser cannot decode the file. Save it as JPEG or PNG, then try again.");
  }
  try {
    const { width, height } = bitmap;
    if (width * height > MAX_PIXELS) throw new Problem(`The picture has ${width} × ${height} pixels. Shrink it first.`);
    const isJpeg = head[0] === 0xff && head[1] === 0xd8;
    const pixels = globalThis.pixels.square(width, height, about.image_size, isJpeg, reader(bitmap));
    return { pixels, thumbnail: thumbnail(bitmap) };
  } finally {
    bitmap.close();
  }
}

function isGray16(head) {
  return head[0] === 0x89 && head[1] === 0x50 && head[24] === 16 && [0, 4].includes(head[25]);
}

// Rows of the picture as RGBA bytes, transparency blended over white.
function reader(bitmap) {
  const canvas = document.createElement("canvas");
  let context;
  return (y, rows) => {
    if (!context) {
      Object.assign(canvas, { width: bitmap.width, height: rows }); // no strip is higher than the first
      context = canvas.getContext("2d", { willReadFrequently: true });
    }
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, bitmap.width, rows);
    context.drawImage(bitmap, 0, -y);
    return context.getImageData(0, 0, bitmap.width, rows).data;
  };
}

function thumbnail(bitmap) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = THUMBNAIL;
  const context = canvas.getContext("2d");
  const side = Math.min(bitmap.width, bitmap.height);
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, THUMBNAIL, THUMBNAIL);
  context.drawImage(
    bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, THUMBNAIL, THUMBNAIL,
  );
  return canvas;
}

// Rows of name, bar and number: `rows` holds [name, share from 0 to 1, number as text].
function bars(rows) {
  const list = element("dl", "", "bars");
  for (const [name, share, number] of rows) {
    const track = element("dd", "", "track");
    const fill = element("span", "", "fill");
    fill.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
    track.append(fill);
    track.setAttribute("aria-hidden", "true");
    const label = element("dt", name);
    label.dir = "auto";
    list.append(label, track, element("dd", number, "value"));
  }
  return list;
}

// The highest values first; of equal ones the first.
function ranked(values) {
  return [...values.keys()].sort((a, b) => values[b] - values[a]).slice(0, SHOWN);
}

function classes(probabilities, about) {
  const order = ranked(Array.from(probabilities));
  const percent = (i) => `${(100 * probabilities[i]).toFixed(1)} %`;
  return {
    title: about.class_names[order[0]],
    rows: order.map((i) => [about.class_names[i], probabilities[i], percent(i)]),
  };
}

function cosine(a, b) {
  let [dot, left, right] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    dot += a[i] * b[i];
    left += a[i] * a[i];
    right += b[i] * b[i];
  }
  return dot / Math.max(Math.sqrt(left * right), 1e-30);
}

// Without classes: each picture's nearest among the others on the page, renewed when one is added.
function compare(answers) {
  for (const one of answers) {
    const others = answers.filter((other) => other !== one);
    const cosines = others.map((other) => cosine(one.output, other.output));
    const rows = ranked(cosines).map((i) => [others[i].name, cosines[i], cosines[i].toFixed(3)]);
    one.words.querySelector(".bars").replaceWith(bars(rows));
    one.words.querySelector(".about").textContent = others.length
      ? "Cosine with the nearest pictures on this page"
      : "Add pictures to compare it with";
  }
}

function waiting(file) {
  const card = element("li", "", "answer card");
  const words = element("div", "", "words");
  const title = element("h3", file.name);
  title.dir = "auto";
  words.append(title, bars([]), element("p", "Waiting", "about"));
  card.append(document.createElement("canvas"), words);
  return { card, words, file, name: file.name };
}

// Fills the card of a picture; returns whether it was read.
async function answer(one, about, model) {
  const began = performance.now();
  try {
    const { pixels, thumbnail: picture } = await decoded(one.file, about);
    const read = performance.now();
    one.output = await model.compute(pixels);
    const done = performance.now();
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", `The part of ${one.name} that the model sees`);
    one.card.querySelector("canvas").replaceWith(picture);
    const [whole, inModel] = [done - began, done - read].map(Math.round);
    one.words.append(element("p", `${whole} ms, the model ${inModel} ms`, "time"));
    if (about.probe) {
      const { title, rows } = classes(one.output, about);
      one.words.querySelector(".about").textContent = one.name;
      one.words.querySelector("h3").textContent = title;
      one.words.querySelector(".bars").replaceWith(bars(rows));
    }
    return true;
  } catch (error) {
    one.card.classList.add("failed");
    one.words.querySelector(".about").textContent = words(error);
    one.words.querySelector(".bars").remove();
    return false;
  }
}

function words(error) {
  return error instanceof Problem ? error.message : `The browser could not do it: ${error.message ?? error}`;
}

function facts(about, version) {
  const rows = [["File", `${about.file}, ${mebibytes(about.bytes)}, ${about.precision}`]];
  if (about.probe) {
    const { accuracy, images } = about.probe;
    rows.unshift(["Classes", about.class_names.join(", ")]);
    rows.splice(1, 0, ["Accuracy", `${(100 * accuracy).toFixed(1)} % of ${images.toLocaleString("en")} test images`]);
  } else {
    rows.unshift(["Classes", "None: the file was exported without a probe, so pictures are compared by their features."]);
  }
  rows.push(["Checksum", `sha256 ${about.sha256}`]);
  rows.push(["Picture", `The centre square at ${about.image_size} × ${about.image_size} pixels`]);
  if (about.unfinished) rows.push(["Training", `Not finished: ${about.unfinished}`]);
  if (version) rows.push(["Runtime", `onnxruntime-web ${version}, WebAssembly, one thread`]);
  part("facts").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  part("about").hidden = false;
}

// Files are answered one after the other, in the order in which they came.
function listen(about, ready) {
  let answers = [];
  let last = ready;
  const take = (files) => {
    const added = Array.from(files, waiting);
    if (!added.length) return show("state", "That was no file. Save the picture first, then choose it here.");
    part("answers").hidden = false;
    part("results").prepend(...added.map((one) => one.card));
    show("state", `0 of ${added.length} pictures done`);
    last = last.then(async (model) => {
      let done = 0;
      for (const one of added) {
        if (!one.card.isConnected) continue; // cleared in the meantime
        if (await answer(one, about, model)) answers.push(one);
        if (!about.probe) compare(answers);
        show("state", `${++done} of ${added.length} pictures done`);
      }
      return model;
    });
    last.catch(() => {}); // said where the model was loaded
  };
  part("files").addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = ""; // the same file may be chosen again
  });
  part("clear").addEventListener("click", () => {
    answers = [];
    part("results").replaceChildren();
    part("answers").hidden = true;
    show("state", "");
    part("files").focus();
  });
  document.addEventListener("paste", (event) => event.clipboardData.files.length && take(event.clipboardData.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
  document.addEventListener("drop", (event) => {
    event.preventDefault(); // anywhere on the page: the browser would leave it to show the file
    document.body.classList.remove("dragging");
    take(event.dataTransfer.files);
  });
}

async function start() {
  if (location.protocol === "file:") {
    throw new Problem(
      "Browsers do not let a page that was opened as a file read a model. Serve this folder over http, for example " +
        "with\n\npython3 -m http.server --directory FOLDER\n\nand open http://localhost:8000",
    );
  }
  if (typeof WebAssembly !== "object") throw new Problem("This browser has no WebAssembly, which the model needs.");
  const about = await description();
  if (!about.probe) document.title = part("title").textContent = "Compare pictures";
  part("tool").hidden = false;
  facts(about);
  const ready = load(about);
  listen(about, ready);
  const { version } = await ready;
  facts(about, version);
  if (part("answers").hidden) show("state", "Ready");
}

start().catch((error) => {
  part("tool").hidden = true;
  show("problem", words(error));
});
