// The page: photos in, classes and maps out.
import { ask } from "./ask.js";
import { openCamera } from "./camera.js";
import { mean, paint } from "./map.js";
import { language, say, share, speak } from "./words.js";

const $ = (id) => document.getElementById(id);
const photos = [];
let model = null, current = null, way = "photo", target = null;

// --- the model

async function begin() {
  $("key").hidden = true;
  try {
    model = await ask("/v1/model");
  } catch (error) {
    return refused(error);
  }
  document.title = `${model.model} · vitrail`;
  $("model").textContent = model.model;
  $("layer").max = model.depth - 1;
  $("layer").value = model.depth - 1;
  $("head").max = model.heads;
  $("ways").append(...["photo", "attention", "rollout", "relevance"]
    .filter((name) => name === "photo" || model.methods.includes(name)).map(choice));
  words();
  photos.filter((photo) => photo.state === "waits").forEach(predict);
}

function choice(name) {
  const label = document.createElement("label"), input = document.createElement("input");
  const text = document.createElement("span");
  Object.assign(input, { type: "radio", name: "way", value: name, checked: name === way });
  input.onchange = () => { way = name; if (name !== "relevance") target = null; show(); };
  text.dataset.word = name;
  label.append(input, text);
  return label;
}

function words(chosen) {
  speak(chosen);
  if (model) {
    const size = model.image_size.toReversed().join(" × ");
    $("about").textContent = say("about", { classes: model.classes.toLocaleString(language), size, engine: model.engine });
  }
  $("trouble").textContent = "";
  photos.forEach(label);
  if (current) show();
}

function refused(error) {
  if (error.status === 401) {
    $("trouble").textContent = sessionStorage.getItem("token") ? say("wrong-token") : "";
    $("key").hidden = false;
    $("token").focus();
    return;
  }
  const known = { offline: "offline", stopping: "stopping", too_large: "too-large" }[error.code];
  $("trouble").textContent = known ? say(known) : error.message;
}

// --- photos

function add(files) {
  const fresh = [...files].filter((file) => file.size).map((file) => {
    const photo = { file, name: file.name || "photo", url: URL.createObjectURL(file), state: "waits", found: {} };
    const item = document.createElement("li"), button = document.createElement("button");
    const image = document.createElement("img"), best = document.createElement("b"), more = document.createElement("span");
    Object.assign(image, { src: photo.url, alt: "" });
    image.onerror = () => { image.style.visibility = "hidden"; }; // the browser's own sign is ugly
    button.type = "button";
    button.onclick = () => choose(photo);
    button.append(image, best, more);
    item.append(button);
    Object.assign(photo, { button, best, more });
    $("photos").append(item);
    return photo;
  });
  photos.push(...fresh);
  fresh.forEach(label);
  if (fresh.length) choose(fresh[0]);
  if (model) fresh.forEach(predict);
}

async function predict(photo) {
  const began = performance.now();
  try {
    if (model.classes) {
      const answer = await ask("/v1/predict?top=5", photo.file, () => { $("said").textContent = say("busy"); });
      photo.top = answer.results[0].top;
    } else photo.top = [];
    photo.state = "answered";
    photo.ms = Math.round(performance.now() - began);
  } catch (error) {
    if (error.status === 401) return refused(error);
    photo.state = "error";
    photo.error = error;
  }
  label(photo);
  if (photo.top?.length) {
    const [best] = photo.top;
    $("said").textContent = say("answered", { name: photo.name, label: best.label, share: share(best.probability) });
  }
  if (photo === current) show();
}

function why({ code, message }) {
  const known = { offline: "offline", stopping: "stopping", too_large: "too-large" }[code];
  return known ? say(known) : code === "not_an_image" ? `${say("not-image")}: ${message}` : message;
}

function label(photo) {
  const best = photo.top?.[0];
  photo.button.className = photo.state === "error" ? "error" : "";
  photo.best.textContent = best?.label ?? { waits: say("waits"), error: "×", answered: say("no-class") }[photo.state];
  photo.more.textContent = best ? share(best.probability) : "";
  photo.button.ariaLabel = [photo.name, photo.error ? why(photo.error) : photo.best.textContent, photo.more.textContent].filter(Boolean).join(", ");
}

function choose(photo) {
  current = photo;
  if (way === "relevance") target = null;
  photos.forEach((other) => other.button.setAttribute("aria-current", String(other === photo)));
  $("photo").src = photo.url;
  $("photo").alt = photo.name;
  show();
}

// --- one photo

function show() {
  const photo = current;
  $("one").hidden = false;
  $("name").textContent = photo.name;
  $("trouble").textContent = photo.state === "error" ? why(photo.error) : "";
  $("glass").classList.toggle("waits", photo.state === "waits");
  $("ways").hidden = photo.state !== "answered";
  $("hint").hidden = !photo.top?.length || !model.methods.includes("relevance");
  $("classes").replaceChildren(...(photo.top ?? []).map((each) => bar(photo, each)));
  $("sliders").hidden = way === "photo" || photo.state !== "answered";
  for (const part of document.querySelectorAll(".of-attention")) part.hidden = way !== "attention";
  for (const input of document.querySelectorAll("input[name=way]")) input.checked = input.value === way;
  took(photo);
  overlay(photo);
}

function bar(photo, { label: name, index, probability }) {
  const item = document.createElement("li"), button = document.createElement("button");
  const text = document.createElement("b"), number = document.createElement("span"), line = document.createElement("i");
  text.textContent = name;
  number.textContent = share(probability);
  line.style.setProperty("--s", probability);
  button.type = "button";
  button.append(text, number, line);
  button.ariaPressed = String(way === "relevance" && index === (target ?? photo.top[0].index));
  button.onclick = () => {
    way = "relevance";
    target = index;
    show();
    $("classes").querySelector("[aria-pressed=true]")?.focus();
  };
  item.append(button);
  return item;
}

function took(photo, found = null) {
  const parts = photo.ms === undefined ? [] : [say("took", { ms: photo.ms })];
  if (found) parts.push(say("explained", { ms: found.ms }));
  $("took").textContent = parts.join(" · ");
}

const question = (photo) => {
  const layers = [...Array(model.depth).keys()].map((layer) => `layers=${layer}`).join("&");
  const of = { attention: `&${layers}`, rollout: "", relevance: `&target=${target ?? photo.top[0].index}` }[way];
  return `/v1/explain?method=${way}${of}`;
};

async function overlay(photo) {
  $("map").hidden = true;
  $("says").textContent = "";
  if (way === "photo" || photo.state !== "answered") return;
  const path = question(photo), began = performance.now();
  if (!photo.found[path]) {
    $("glass").classList.add("waits");
    try {
      const { results: [{ explanation }] } = await ask(path, photo.file, () => { $("said").textContent = say("busy"); });
      photo.found[path] = { ...explanation, ms: Math.round(performance.now() - began) };
    } catch (error) {
      if (photo === current && path === question(photo)) refused(error);
      return;
    } finally {
      if (photo === current) $("glass").classList.remove("waits");
    }
  }
  // Meanwhile another photo, or another way, may have been chosen.
  if (photo === current && way !== "photo" && path === question(photo)) lay(photo.found[path], photo);
}

function lay(found, photo) {
  const head = Number($("head").value), layer = Number($("layer").value);
  let map = found.maps;
  if (way === "attention") {
    const heads = found.maps[layer].map((queries) => queries[0]);
    map = head ? heads[head - 1] : mean(heads);
  } else if (way === "rollout") map = mean(found.maps.length ? found.maps : [found.maps]);
  const place = say("place", paint($("map"), map, found));
  $("says").textContent = say(`says-${way}`, { place, label: found.target?.label });
  $("map").ariaLabel = $("says").textContent;
  $("map").hidden = false;
  slide();
  took(photo, found);
}

function slide() {
  if (!model) return;
  const layer = Number($("layer").value) + 1, head = Number($("head").value);
  $("layer-says").textContent = say("of", { i: layer, n: model.depth });
  $("head-says").textContent = head ? say("of", { i: head, n: model.heads }) : say("mean", { n: model.heads });
  $("strength-says").textContent = share($("strength").value / 100);
  $("layer").ariaValueText = $("layer-says").textContent;
  $("head").ariaValueText = $("head-says").textContent;
  $("map").style.opacity = $("strength").value / 100;
}

// --- what a person does

for (const button of document.querySelectorAll("[data-language]")) button.onclick = () => words(button.dataset.language);
$("files").onchange = ({ target: input }) => { add(input.files); input.value = ""; };
$("layer").oninput = $("head").oninput = () => current && overlay(current);
$("strength").oninput = slide;
$("photo").onload = ({ target: image }) => {
  $("glass").hidden = false;
  $("glass").classList.toggle("tiny", image.naturalWidth < 160);
  $("glass").style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
};
$("photo").onerror = () => { $("glass").hidden = true; }; // what it is, or why not, is said beside
$("key").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  begin();
};
addEventListener("paste", ({ clipboardData }) => add(clipboardData.files));
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
addEventListener("dragleave", ({ relatedTarget }) => { if (!relatedTarget) document.body.classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  add(event.dataTransfer.files);
});
$("camera").hidden = !navigator.mediaDevices?.getUserMedia;
$("camera").onclick = () => openCamera(add, (error) => { $("trouble").textContent = say("no-camera", { why: error.message }); });

words();
begin();
