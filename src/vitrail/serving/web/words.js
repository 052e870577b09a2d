// Every word of the page, in both languages; `say` fills in what stands in braces.
const WORDS = {
  en: {
    lead: "Show it a photo: it says what it sees, and where it looked.",
    drop: "Drop photos here, or paste one.",
    choose: "Choose photos", camera: "Use the camera",
    private: "Photos go to this server alone, stay in its memory while it answers, and are kept nowhere.",
    token: "This server wants its token.", use: "Use it",
    lens: "Camera", shoot: "Take the photo", close: "Close",
    show: "What to lay over the photo", layer: "Layer", head: "Head", strength: "Strength",
    photo: "Photo", attention: "Attention", rollout: "Rollout", relevance: "Why this class",
    mean: "mean of {n}", of: "{i} of {n}",
    hint: "Choose a class to see what speaks for it.",
    took: "Answered in {ms} ms", explained: "explained in {ms} ms",
    about: "{classes} classes · {size} px · {engine}",
    "says-attention": "How much each patch is looked at in this layer. Most: {place}.",
    "says-rollout": "What the answer is made of, through all layers. Most: {place}.",
    "says-relevance": "What speaks for “{label}”. Most: {place}.",
    place: "row {row}, column {column} of {h} × {w} patches",
    answered: "{name}: {label}, {share}", waits: "waiting …", "no-class": "features only",
    "not-image": "This is no image that can be read",
    busy: "The server is busy; asking again.", stopping: "The server is stopping.",
    offline: "The server does not answer.", "wrong-token": "That token is not the right one.",
    "no-camera": "The camera cannot be used: {why}",
    "too-large": "This photo is too large for the server.",
    foot: "Served by vitrail. Nothing on this page is fetched from anywhere else.",
  },
  ko: {
    lead: "사진을 보여 주세요. 무엇이 보이는지, 어디를 보았는지 알려 드립니다.",
    drop: "사진을 여기에 끌어다 놓거나 붙여 넣으세요.",
    choose: "사진 고르기", camera: "카메라 쓰기",
    private: "사진은 이 서버로만 가고, 답하는 동안만 메모리에 머물며, 어디에도 저장되지 않습니다.",
    token: "이 서버에는 토큰이 필요합니다.", use: "사용",
    lens: "카메라", shoot: "사진 찍기", close: "닫기",
    show: "사진 위에 겹쳐 볼 것", layer: "층", head: "헤드", strength: "진하기",
    photo: "사진", attention: "어텐션", rollout: "롤아웃", relevance: "이 클래스인 까닭",
    mean: "{n}개 평균", of: "{n}개 중 {i}",
    hint: "클래스를 고르면 무엇이 그 근거인지 보여 줍니다.",
    took: "{ms} ms 만에 답함", explained: "{ms} ms 만에 설명함",
    about: "클래스 {classes}개 · {size} px · {engine}",
    "says-attention": "이 층이 각 패치를 얼마나 보는지입니다. 가장 많이 본 곳: {place}.",
    "says-rollout": "모든 층을 거쳐 답이 무엇으로 이루어졌는지입니다. 가장 큰 곳: {place}.",
    "says-relevance": "“{label}”의 근거입니다. 가장 큰 곳: {place}.",
    place: "{h} × {w} 패치 중 {row}행 {column}열",
    answered: "{name}: {label}, {share}", waits: "기다리는 중 …", "no-class": "특징만 있음",
    "not-image": "읽을 수 있는 이미지가 아닙니다",
    busy: "서버가 바쁩니다. 다시 묻는 중입니다.", stopping: "서버가 멈추는 중입니다.",
    offline: "서버가 답하지 않습니다.", "wrong-token": "토큰이 맞지 않습니다.",
    "no-camera": "카메라를 쓸 수 없습니다: {why}",
    "too-large": "이 사진은 서버가 받기에 너무 큽니다.",
    foot: "vitrail이 보여 주는 페이지입니다. 다른 곳에서 가져오는 것은 없습니다.",
  },
};

const wished = () => navigator.languages.find((l) => /^(ko|en)\b/.test(l)) ?? "en";
export let language = localStorage.getItem("language") ?? wished().slice(0, 2);

export function say(word, values = {}) {
  const text = WORDS[language][word] ?? word;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export function speak(chosen = language) {
  if (chosen !== language) localStorage.setItem("language", chosen);
  language = chosen;
  document.documentElement.lang = language;
  for (const part of document.querySelectorAll("[data-word]")) part.textContent = say(part.dataset.word);
  for (const button of document.querySelectorAll("[data-language]"))
    button.ariaPressed = String(button.dataset.language === language);
}

export const share = (p) => new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 1 }).format(p);
